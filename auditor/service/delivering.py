"""The sender of webhooks: claims what is due, sends it, records what came of it. Any number may run."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from auditor.errors import StoreError
from auditor.service import webhooks

if TYPE_CHECKING:
    from auditor.service.egress import Egress
    from auditor.service.webhook_signing import WebhookSigner
    from auditor.service.webhooks import Sending
    from auditor.store import Store

logger = logging.getLogger("auditor.webhooks")
MOST_AT_ONCE = 32
LOOK_SECONDS = 1.0


class Sender:
    """Sends what is due; slow receivers hold nobody else up."""

    def __init__(self, store: Store, signer: WebhookSigner, egress: Egress) -> None:
        self._store, self._signer, self._egress = store, signer, egress
        self._under_way: dict[asyncio.Task[None], str] = {}

    def run(self, ended: threading.Event) -> None:
        """Send until told to stop; what is under way is finished."""
        asyncio.run(self._run(ended))

    def send_due(self) -> int:
        """Send what is due now and wait for it; returns how many were tried."""
        return asyncio.run(self._send_due())

    async def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                await self._begin()
            except StoreError as error:
                logger.warning("database: %s", error)
            rest = asyncio.create_task(asyncio.sleep(LOOK_SECONDS))
            await asyncio.wait({rest, *self._under_way}, return_when=asyncio.FIRST_COMPLETED)
            rest.cancel()
        await self._finish()

    async def _send_due(self) -> int:
        begun = 0
        while count := await self._begin():
            begun += count
            await self._finish()
        return begun

    async def _finish(self) -> None:
        if self._under_way:
            await asyncio.wait(list(self._under_way))

    async def _begin(self) -> int:
        most = MOST_AT_ONCE - len(self._under_way)
        if most <= 0:
            return 0
        claimed = await asyncio.to_thread(self._claim, most, dict(Counter(self._under_way.values())))
        for sending in claimed:
            task = asyncio.create_task(self._send(sending))
            self._under_way[task] = sending.tenant_id
            task.add_done_callback(self._under_way.pop)
        return len(claimed)

    def _claim(self, most: int, busy: dict[str, int]) -> list[Sending]:
        with self._store.transaction() as connection:
            if not webhooks.is_due(connection):
                return []
        with self._store.transaction(writes=True) as connection:
            return webhooks.claim(connection, most, busy)

    async def _send(self, sending: Sending) -> None:
        signed = self._signer.headers(sending.webhook_id, sending.id, int(time.time()), sending.body)
        headers = {"Content-Type": "application/json", "User-Agent": "auditor-webhooks/1", **signed}
        outcome = await self._egress.post(sending.url, headers, sending.body)

        def settle() -> None:
            chance = random.random()  # noqa: S311  # jitter
            with self._store.transaction(writes=True) as connection:
                webhooks.settle(connection, sending, outcome, chance)

        try:
            await asyncio.to_thread(settle)
        except StoreError as error:  # its lease ends, and it is sent again
            logger.warning("database: %s", error)
