"""All that the language model reads: token ids, templates, sentences around media, captions."""
