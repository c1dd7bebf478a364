"""Do all attention implementations agree? Kernels and compiled code against eager attention, states and gradients.

    python -m benchmarks.attention                          # narrow, on a CPU: what can be checked there
    python -m benchmarks.attention --size real --layers 4   # the true widths, on a GPU

Three things are computed: the encoder on clips of 0.3 to 42.5 s in one batch, the language model on padded rows of one
question each, and on the same questions in rows that share clips. Each runs with sdpa, flex attention, flash attention
if it is installed, and compiled sdpa, in bfloat16 and in float32. The reference is eager attention in float32, with
the encoder run one clip at a time. The error is ||x - reference|| / ||reference||, for the last hidden states at real
positions (for the language model, those with a loss) and for the gradient of the encoder's first convolution, which
passes through all layers.

Also checked: torch's own variable-length kernel, and whether a static cache (compiled on a GPU) generates the same
tokens as a growing one.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from falcon3_audio.training.data.packing import IGNORED

from .batches import PaddingCollator, Step, our_collator, prompts
from .clips import open_asqa_step
from .generation import answer
from .measure import device, options, positive, print_shape, print_table, record, run_script, seconds
from .models import FLAMINGO, OURS, build
from .shapes import END_TOKEN, Shape, shape_of


FRAMES = (31, 247, 731, 1000, 2999, 3000, 4251)  # mel frames of the clips, 100 per second; the last spans two windows
# Error limits. float32 differs only by the order of summation. In bfloat16 an implementation's error against the
# float32 reference may be up to 1.5 times that of sdpa in bfloat16, and that of sdpa up to eight roundings of 2^-8:
# twice what was measured on a CPU (0.9 % for states and 1.5 % for the gradient, after four layers of encoder and
# language model each).
FLOAT32, GRADIENT_FLOAT32 = 1e-4, 1e-3
AS_SDPA = 1.5
BFLOAT16 = 8 * 2**-8
OWN_ROWS, SHARED_ROWS, ENCODER = "rows of their own", "rows that share clips", "encoder"
FLASH = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
Tensors = tuple[torch.Tensor, torch.Tensor]


class Encoder:
    """The encoder on clips of all lengths. Calling it returns the states of the real positions, concatenated."""

    def __init__(self, model: Any, seed: int):
        self.module = model.model.audio_tower
        bands = self.module.config.num_mel_bins
        generator = torch.Generator().manual_seed(seed)
        width = max(FRAMES) + 2  # past the longest clip: the convolutions see up to two frames after its end
        self.features = torch.randn(len(FRAMES), bands, width, generator=generator).to(device())
        self.mask = (torch.arange(width) < torch.tensor(FRAMES)[:, None]).long().to(device())

    def __call__(self, module: Any) -> torch.Tensor:
        states = module(self.features.to(self.module.dtype), self.mask).last_hidden_state
        real = self.module._get_feat_extract_output_lengths(self.mask.sum(-1))
        return torch.cat([row[:count] for row, count in zip(states, real.tolist())])

    def reference(self) -> torch.Tensor:
        alone = []
        for features, mask, frames in zip(self.features, self.mask, FRAMES):
            clip = features[None, :, : frames + 2], mask[None, : frames + 2]
            alone.append(self.module(*clip).last_hidden_state[0])
        return torch.cat(alone)


class Rows:
    """The whole model without its head: the states that answers are predicted from, answer by answer."""

    def __init__(self, model: Any, batch: dict[str, torch.Tensor]):
        self.module = model.model
        labels = batch.pop("labels")
        kept = torch.zeros_like(labels, dtype=torch.bool)
        kept[:, :-1] = labels[:, 1:] != IGNORED
        self.order = _by_answer(labels[:, 1:][kept[:, :-1]].tolist()).to(device())
        counts = [name for name in batch if name.startswith("num_")]
        self.inputs = {name: value.to(device()) for name, value in batch.items() if name not in counts}
        self.inputs["kept_positions"] = kept.to(device())

    def __call__(self, module: Any) -> torch.Tensor:
        features = self.inputs["input_features"].to(self.module.dtype)
        outputs = module(**self.inputs | {"input_features": features}, use_cache=False)  # as in training
        return outputs.last_hidden_state[0][self.order]

    def reference(self) -> torch.Tensor:
        return self(self.module)


def _by_answer(labels: Sequence[int]) -> torch.Tensor:
    """Indices that sort concatenated answers (`labels`), so that their order in the batch does not matter."""
    ends = [place + 1 for place, label in enumerate(labels) if label == END_TOKEN]
    spans = sorted(zip([0, *ends], ends), key=lambda span: list(labels[span[0] : span[1]]))
    return torch.cat([torch.arange(*span) for span in spans])


def states_and_gradient(run: Callable[[], torch.Tensor], model: Any, backward: bool = True) -> Tensors:
    """The output of `run`, and the first encoder convolution's gradient of a fixed weighted sum of it; float32."""
    weight = model.model.audio_tower.conv1.weight
    weight.grad = None
    with torch.set_grad_enabled(backward):
        states = run()
        if not backward:
            return states.float(), torch.zeros(0)
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(states.shape, generator=generator).to(states.device)
        (states.float() * direction).sum().backward()
    return states.detach().float(), weight.grad.float()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||; 0 if there is nothing to compare."""
    return float((found - expected).norm() / expected.norm()) if expected.numel() else 0.0


def ways(target: str, dtype: torch.dtype) -> list[str]:
    """Names of attention implementations; `compiled` is compiled sdpa."""
    masked = target == SHARED_ROWS  # flash attention cannot do that
    flash = [name for name, there in FLASH.items() if there()] if dtype != torch.float32 and not masked else []
    return ["sdpa", "flex_attention", *flash, "compiled"]


@torch.no_grad()
def make_attention_matter(model: Any, seed: int) -> None:
    """
    Makes scores spread by more than 2, and outputs as large as the residual stream they are added to. The default
    initialisation gives nearly equal scores to all keys, and so negligible outputs: a wrong mask would go unnoticed.
    """
    generator = torch.Generator(device()).manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".self_attn." in name and weight.dim() == 2:
            weight.normal_(0, 1.5 * weight.shape[1] ** -0.5, generator=generator)


class Checks:
    """All cases of a model. Each outcome is equal, not equal, error, or not reached within `seconds`."""

    def __init__(self, model: Any, step: Step, given: argparse.Namespace):
        own = PaddingCollator(FLAMINGO, step)([{"question": number} for number in range(len(step.questions))])
        shared = our_collator(step)(list(step.dataset()))
        if "segment_ids" not in shared:
            raise ValueError(f"{given.questions} questions share no clip: increase --questions.")
        self.model, self.given, self.start = model, given, time.monotonic()
        rows = Rows(model, own)
        encoder = Encoder(model, given.seed)
        self.targets: dict[str, Encoder | Rows] = {ENCODER: encoder, SHARED_ROWS: Rows(model, shared), OWN_ROWS: rows}
        model.set_attn_implementation("eager")
        reference: dict[str, Encoder | Rows] = {ENCODER: encoder, OWN_ROWS: rows, SHARED_ROWS: rows}
        self.expected = {name: states_and_gradient(one.reference, model) for name, one in reference.items()}
        self.cases: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        for dtype in (torch.bfloat16, torch.float32):
            weights = [weight.data for weight in self.model.parameters()]
            for weight in self.model.parameters():  # not the buffers: rotary frequencies are float32 in all models
                weight.data = weight.data.to(dtype)
            for target in self.targets:
                sdpa = None
                for way in self._ways(target, dtype):
                    case: dict[str, Any] = {
                        "what": target,
                        "attention": way,
                        "dtype": str(dtype).removeprefix("torch."),
                    }
                    case |= self._attempt(partial(self._compare, target, way, sdpa))
                    sdpa = case.get("errors") if way == "sdpa" else sdpa
                    self.cases.append(case)
            for weight, data in zip(self.model.parameters(), weights):
                weight.data = data
        return self.cases

    def _ways(self, target: str, dtype: torch.dtype) -> list[str]:
        return [way for way in ways(target, dtype) if self.given.ways is None or way in self.given.ways]

    def also(self, what: str, way: str, dtype: str, check: Callable[[], dict[str, Any]]):
        self.cases.append({"what": what, "attention": way, "dtype": dtype} | self._attempt(check))

    def _attempt(self, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if time.monotonic() - self.start > self.given.seconds:
            return {"outcome": "not reached", "reason": f"the limit of {self.given.seconds} s was reached"}
        try:
            return check()
        except Exception as failure:  # any: it is reported, and the other cases still run
            return {"outcome": "error", "reason": f"{type(failure).__name__}: {' '.join(str(failure).split())[:500]}"}

    def _compare(self, target: str, way: str, sdpa: Sequence[float] | None) -> dict[str, Any]:
        one = self.targets[target]
        self.model.set_attn_implementation("sdpa" if way == "compiled" else way)
        torch.compiler.reset()
        called = torch.compile(one.module, backend=self.given.backend) if way == "compiled" else one.module
        # torch has no backward for flex attention on a CPU.
        backward = way != "flex_attention" or device() != "cpu"
        run = partial(states_and_gradient, partial(one, called), self.model, backward)
        found = run()
        expected = self.expected[target]
        errors = [error(found[0], expected[0]), error(found[1], expected[1]) if backward else 0.0]
        limits = self._limits(sdpa)
        equal = all(value <= limit for value, limit in zip(errors, limits))
        times = sorted(seconds(run) for _ in range(self.given.repeats))
        result: dict[str, Any] = {"outcome": "equal" if equal else "not equal", "errors": errors, "limits": limits}
        return result | {"backward": backward, "seconds": times}

    def _limits(self, sdpa: Sequence[float] | None) -> list[float]:
        if self.model.dtype == torch.float32:
            return [FLOAT32, GRADIENT_FLOAT32]
        return [AS_SDPA * value for value in sdpa] if sdpa else [BFLOAT16] * 2


def variable_length(shape: Shape) -> dict[str, Any]:
    """torch's kernel for concatenated sequences, with the encoder's heads, against sdpa on each; bfloat16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    heads = shape.audio["num_attention_heads"]
    lengths = [-(-frames // 2) for frames in FRAMES]
    generator = torch.Generator().manual_seed(0)
    sizes = (3, sum(lengths), heads, shape.audio["hidden_size"] // heads)
    parts = torch.randn(sizes, generator=generator).to(device(), torch.bfloat16)
    starts = torch.tensor([0, *lengths], device=device()).cumsum(0).int()
    found = varlen_attn(*parts, starts, starts, max(lengths), max(lengths))
    alone = [
        torch.nn.functional.scaled_dot_product_attention(*(part.transpose(0, 1)[None].float() for part in clip))
        for clip in zip(*(part.split(lengths) for part in parts))
    ]
    expected = torch.cat([clip[0].transpose(0, 1) for clip in alone])
    errors, limits = [error(found.float(), expected)], [BFLOAT16]
    return {"outcome": "equal" if errors <= limits else "not equal", "errors": errors, "limits": limits}


def static_cache(model: Any, step: Step) -> dict[str, Any]:
    """The share of tokens that a static cache changes, over up to four answers of 16 tokens in float32."""
    asked = range(min(4, len(step.questions)))
    inputs = {name: value.to(device()) for name, value in prompts(OURS, step, asked).items()}
    growing = answer(model, inputs, 16)
    static = answer(model, inputs, 16, cache_implementation="static")
    differ = float((growing != static).float().mean())
    return {"outcome": "equal" if differ == 0 else "not equal", "errors": [differ], "limits": [0.0]}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    torch.backends.cudnn.allow_tf32 = False  # otherwise float32 convolutions are not float32
    shape = shape_of(given.preset, given.size)
    shape = dataclasses.replace(shape, audio=_cut(shape.audio, given.layers), text=_cut(shape.text, given.layers))
    print_shape(shape)
    step = Step(open_asqa_step(given.questions, given.seed), shape, given.seed)
    model = build(OURS, shape, device(), torch.float32, given.seed).requires_grad_(False)
    make_attention_matter(model, given.seed)
    model.model.audio_tower.conv1.weight.requires_grad_(True)
    checks = Checks(model, step, given)
    if torch.cuda.is_available():
        checks.also("one call", "varlen_attn", "bfloat16", lambda: variable_length(shape))
    checks.run()
    model.set_attn_implementation("sdpa")
    checks.also("answers", "static cache", "float32", lambda: static_cache(model, step))
    report(checks.cases)
    results = {"cases": checks.cases, "clips, mel frames": FRAMES, "questions": given.questions}
    record(given, shape, results)
    wrong = [f"{case['what']}, {case['attention']}, {case['dtype']}" for case in checks.cases if not _fine(case)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(checks.cases)} cases are not equal or in error: {'; '.join(wrong)}")
    return results


def _fine(case: dict[str, Any]) -> bool:
    return case["outcome"] in ("equal", "not reached")


def _cut(sizes: dict[str, Any], layers: int | None) -> dict[str, Any]:
    return sizes | ({"num_hidden_layers": layers} if layers else {})


def report(cases: Sequence[dict[str, Any]]) -> None:
    rows = []
    for case in cases:
        errors = [*case.get("errors", []), "-", "-"]
        spent = case.get("seconds", [])
        time = spent[len(spent) // 2] * 1e3 if spent else "-"
        gradient = errors[1] if case.get("backward") else "-"
        rows.append([case["what"], case["attention"], case["dtype"], errors[0], gradient, time, case["outcome"]])
    print_table("Errors", ["what", "attention", "dtype", "states", "gradient", "ms", ""], rows)
    for case in cases:
        if "reason" in case:
            print(f"{case['what']}, {case['attention']}, {case['dtype']}: {case['reason']}")


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/attention.json", repeats=3)
    parser.add_argument("--layers", type=positive, help="of encoder and language model (default: the preset's)")
    parser.add_argument("--questions", type=positive, default=32, help="in the rows (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", help="only these of sdpa, flex_attention, ..., compiled (default: all)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=600, help="start no case after these (default: %(default)s)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("attention", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
