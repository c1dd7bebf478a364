"""Entry point of group `vllm.general_plugins`: registers Falcon3-Audio in vLLM, without `--trust-remote-code`.

vLLM calls `register` in each of its processes, several times in some. Only names are registered here; the class itself
(vllm_model.py) is imported by vLLM when a checkpoint asks for it, so that other models are served as before. The package
is installed alongside vLLM with `pip install --no-deps falcon3-audio`, since vLLM pins an older transformers.
"""

ARCHITECTURE = "Falcon3AudioForConditionalGeneration"


def register() -> None:
    from vllm import ModelRegistry

    import falcon3_audio  # noqa: F401  (the Auto classes, with which vLLM reads the checkpoint)

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "falcon3_audio.serving.vllm_model:Falcon3AudioForVllm")
