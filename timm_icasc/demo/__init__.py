"""A page in the browser that explains images by one or two models; drawn with Gradio, which is loaded here alone."""
