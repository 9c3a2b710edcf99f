"""Make the demo model's shipped profiles (`auditor/demo_profiles/`): `make profiles`.

Each is calibrated on the recorded honest traces of one serving recipe (tests/traces/README.md), or, for the
reference engine's own recipe, on fresh honest generations. Other honest files of the same recipe are left
out, so that the test-suite can audit them.
"""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

from auditor.calibration import calibrate
from auditor.generation import Provider, generate
from auditor.profile import profile_bytes
from auditor.profiles import SHIPPED
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.model import Model
from auditor.replay import Reference
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
RECORDED = (
    "vllm-cpu-bf16-plain",
    "vllm-cpu-fp32-plain",
    "transformers-bf16-plain",
    "transformers-fp32-topk50-topp95",
    "llamacpp-f16-kvf16-plain",
    "llamacpp-f32-kvf32-plain",
)
OWN_REQUESTS = 160
OWN_SEED = 77_000_001


def main():
    reference, other = Reference.load(TARGET), Model.load(DRAFT)
    sources = {name: read_traces(TRACES / f"{name}.jsonl.gz") for name in RECORDED}
    provider = Provider.load(TARGET)
    conversations = demo_conversations(OWN_REQUESTS, OWN_SEED)
    sources["auditor-bf16"] = generate(provider, conversations, deviation=HONEST, seed=OWN_SEED)
    SHIPPED.mkdir(exist_ok=True)
    for name, traces in sources.items():
        created = datetime(2026, 11, 23, tzinfo=UTC)
        profile = calibrate(traces, reference, other_model=other, now=created)
        path = SHIPPED / f"{name}.json.gz"
        path.write_bytes(gzip.compress(profile_bytes(profile), mtime=0))
        print(path, profile.honest_tokens, profile.noise_scale, dict(profile.smallest_alpha))


if __name__ == "__main__":
    main()
