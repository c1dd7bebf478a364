"""A Whisper and a Llama of about 3 M parameters each, pretrained on the audio world, and their training scripts."""
