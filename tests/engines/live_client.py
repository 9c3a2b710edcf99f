"""Send the requests of a job to a server, all at once, through the OpenAI client. Runs in the engine's environment.

usage: live_client.py URL JOB.json REPORT.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from openai import AsyncOpenAI


async def ask(client, request):
    sampling = request["sampling"]
    answer = await client.chat.completions.create(
        model="demo",
        messages=request["messages"],
        seed=request["seed"],
        temperature=sampling["temperature"],
        top_p=sampling.get("top_p", 1.0),
        max_tokens=sampling["max_tokens"],
        # Everything else explicitly: a server fills what is not sent from the model's own settings.
        extra_body={
            "top_k": sampling.get("top_k", 0),
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "vllm_xargs": {"audit_id": request["id"]},
        },
    )
    return request["id"], answer.choices[0].model_extra["token_ids"]


async def ask_all(url, requests):
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:
        return dict(await asyncio.gather(*(ask(client, request) for request in requests)))


def main():
    url, job, report = sys.argv[1:]
    answers = asyncio.run(ask_all(url, json.loads(Path(job).read_text())))
    Path(report).write_text(json.dumps(answers))


main()
