"""What is wrong with a configuration, told before anything heavy is done."""
