"""The embedded audio-visual world: clips, sounds, texts and the small models that know it."""
