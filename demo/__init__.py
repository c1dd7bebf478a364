"""The Gradio Space: chat about audio clips in the browser."""
