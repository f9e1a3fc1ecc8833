"""The control room, a Gradio app. Stage 7; the only importer of gradio."""
