"""Stage 7: the control room, a Gradio app at `/ui`. Imported by the gateway only; imports models, config, contracts."""
