"""The Gradio Space: talk about a sound in the browser."""
