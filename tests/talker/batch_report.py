"""How batch mates change a row: the same row of the same state in batches of growing size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench_engine import launch

from engine_lib.sampling import SamplingParams
from engine_lib.talker.engine import TalkerEngine
from talker.speaking import GREEDY, Utterance, unheard, write_block_tables
from talker.teacher_forcing import Forcing, forced, relative_errors


@dataclass(frozen=True)
class RowDifference:
    """Row 0 in a batch against row 0 alone.

    Attributes:
        batch: rows of the step.
        hidden: relative error of the talker's last layer; 0 means equal bits.
        first, rest: largest relative error of the logits of codebook 0, and of the others.
        num_equal_books: codebooks with logits of equal bits.
        num_other_codes: codebooks in which another code was sampled.
    """

    batch: int
    hidden: float
    first: float
    rest: float
    num_equal_books: int
    num_other_codes: int


def row_differences(engine: TalkerEngine, batches: Sequence[int]) -> list[RowDifference]:
    """Fill `engine`, eager and not started, with max(`batches`) streams some frames long; step their first one in each batch size.

    Every step starts from the same state and is fed the codes of the first, so that the logits of all codebooks can be compared.
    """
    path, worker = engine.checkpoint.path, engine.worker
    groups = engine.checkpoint.config.talker.num_code_groups
    texts = ("one two three " * n for n in range(1, 6))
    prompts = [Utterance(text).prompt(path) for text in texts]
    with torch.inference_mode():
        for i in range(max(batches)):
            sampling = GREEDY if i == 0 else SamplingParams(seed=i)
            engine.scheduler.add(unheard(engine, str(i), prompts[i % len(prompts)], sampling))
        while engine.scheduler.waiting or any(sequence.num_launched_frames < 4 for sequence in engine.scheduler.active):
            launch(engine)
        for sequence in engine.scheduler.active:  # the steps below bypass the scheduler, which would allocate their blocks
            assert engine.scheduler.block_manager.grow(sequence.block_table, sequence.num_rows_on_device + 1)
        write_block_tables(engine)
        slots = torch.tensor([sequence.slot for sequence in engine.scheduler.active], device=worker.device)
        state = [*vars(worker.state).values(), worker.kv_cache]
        tensors = [t for item in state for t in ([item] if isinstance(item, torch.Tensor) else vars(item).values())]
        saved = [tensor.clone() for tensor in tensors]

        def stepped(batch: int, teacher: torch.Tensor | None) -> tuple[torch.Tensor, Forcing, torch.Tensor]:
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
            forcing = Forcing(groups, teacher)
            x = worker.forward.decode(slots[:batch], worker.state.block_tables.shape[1])
            hidden = x[0].double().cpu()
            with forced(forcing, worker.device):
                worker.forward.sample(slots[:batch], x)
            return hidden, forcing, torch.stack([logits[0].argmax() for logits in forcing.logits]).cpu()

        _, forcing, _ = stepped(max(batches), None)
        teacher = forcing.all_codes()
        hidden, alone, codes = stepped(1, teacher)
        differences = []
        for batch in batches:
            hidden_now, now, codes_now = stepped(batch, teacher)
            rows = [(now.logits_of(book)[:, :1], alone.logits_of(book)) for book in range(groups)]
            errors = [float(relative_errors(row, row_alone).max()) for row, row_alone in rows]
            differences.append(
                RowDifference(
                    batch,
                    hidden=float((hidden_now - hidden).norm() / hidden.norm()),
                    first=errors[0],
                    rest=max(errors[1:]),
                    num_equal_books=sum(np.array_equal(row, row_alone) for row, row_alone in rows),
                    num_other_codes=int((codes_now != codes).sum()),
                )
            )
    return differences


def table(name: str, differences: Sequence[RowDifference]) -> str:
    """The differences as lines to print."""
    lines = [f"{name}: row 0 in a batch against row 0 alone (relative errors; 0 is equal bits)"]
    lines.append(f"{'batch':>6} {'hidden':>10} {'codebook 0':>11} {'the others':>11} {'equal books':>12} {'other likeliest codes':>22}")
    for row in differences:
        figures = f"{row.hidden:>10.2e} {row.first:>11.2e} {row.rest:>11.2e} {row.num_equal_books:>12} {row.num_other_codes:>22}"
        lines.append(f"{row.batch:>6} {figures}")
    return "\n".join(lines)
