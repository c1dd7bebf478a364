"""Questions about real recordings of speech, sounds and music, from free Debian packages: `falcon3-audio real-sounds`."""
