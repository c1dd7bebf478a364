"""From data to a checkpoint: the modules here are the run (`sft`, `grpo`, and what they are made of).

data/ reads sets into batches, prepare/ makes sets, publishing/ makes a run into what others load, studies/ compares recipes,
world/ and tiny_backbones/ are the small world of sounds and models that hear it.
"""
