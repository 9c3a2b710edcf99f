"""The outbox for e-mail: claimed under a lease, sent over TLS, tried again for some days.

A letter may arrive twice (a sender that dies between the server's answer and its own note), with the same
`Message-ID`; it is never lost, and never sent before what it tells of is committed.
"""

from __future__ import annotations

import os
import smtplib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sqlalchemy import select, update

from auditor.errors import OptionError
from auditor.listening import is_loopback
from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.service.webhooks import JITTER, WAITS
from auditor.store_schedules import mail as mail_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.store import Store

PASSWORD_VARIABLE = "AUDITOR_SMTP_PASSWORD"  # noqa: S105  the name of a variable
LEASE_SECONDS = 120
TIMEOUT_SECONDS = 30.0
_MOST_ERROR = 200
_FORMS = "smtps://user@host:465, or smtp://user@host:587 (STARTTLS)"
_PORTS = {"smtps": 465, "smtp": 587}


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where letters are handed over, and in whose name.

    Attributes:
        at_once: TLS from the first byte; else STARTTLS, which is not done without except on this machine.
        authority: certificates to trust instead of the system's.
    """

    host: str
    port: int
    sender: str
    at_once: bool = False
    user: str | None = None
    password: str | None = None
    authority: Path | None = None

    @classmethod
    def of_url(cls, url: str, sender: str | None, authority: Path | None = None) -> MailServer:
        """Read `smtps://user@host:port` or `smtp://...`; the password is in AUDITOR_SMTP_PASSWORD.

        Raises:
            OptionError: no such URL, a password in it, or no sender.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            raise OptionError("not the URL of a mail server", where="--smtp", fix=_FORMS) from None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
            raise OptionError("not the URL of a mail server", where="--smtp", fix=_FORMS)
        if parts.password is not None:
            raise OptionError("holds a password", where="--smtp", fix=f"set {PASSWORD_VARIABLE}")
        if not sender or "@" not in sender or not sender.isprintable():
            raise OptionError("is no address", where="--mail-from", fix="for instance auditor@example.com")
        user = None if parts.username is None else unquote(parts.username)
        password = os.environ.get(PASSWORD_VARIABLE) if user else None
        return cls(parts.hostname, port, sender, parts.scheme == "smtps", user, password, authority)


@dataclass(frozen=True, slots=True)
class Letter:
    """A claimed letter."""

    id: str
    recipient: str
    subject: str
    body: str
    created: int
    attempts: int
    token: int


def is_due(connection: Connection) -> bool:
    """Whether a claim would find something; needs no write lock."""
    column = mail_table.c
    due = select(column.id).where(column.state == "pending", column.next_at <= time_now(connection))
    return connection.execute(due.limit(1)).first() is not None


def claim(connection: Connection) -> Letter | None:
    """Take the letter that is due longest, under a lease; one whose attempts are used up has failed."""
    now = time_now(connection)
    column = mail_table.c
    due = select(mail_table).where(column.state == "pending", column.next_at <= now).order_by(column.next_at)
    row = connection.execute(due.limit(1).with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    spent = row.attempts > len(WAITS)
    values = {"state": "failed"} if spent else {"next_at": now + LEASE_SECONDS * SECOND}
    values |= {"attempts": row.attempts + 1, "token": row.token + 1}
    connection.execute(update(mail_table).where(column.id == row.id).values(values))
    if spent:
        return None
    return Letter(row.id, row.recipient, row.subject, row.body, row.created, row.attempts + 1, row.token + 1)


def settle(connection: Connection, letter: Letter, error: str | None, *, final: bool, chance: float) -> bool:
    """Note what came of it; False where another sender holds the letter."""
    values: dict[str, object] = {"error": error}
    if error is None:
        values["state"] = "delivered"
    elif final or letter.attempts > len(WAITS):
        values["state"] = "failed"
    else:
        wait = WAITS[letter.attempts - 1] * (1.0 - JITTER + 2.0 * JITTER * chance)
        values["next_at"] = time_now(connection) + round(wait * SECOND)
    column = mail_table.c
    same = (column.id == letter.id, column.token == letter.token, column.state == "pending")
    return connection.execute(update(mail_table).where(*same).values(values)).rowcount == 1


def deliver_one(store: Store, server: MailServer, chance: float) -> bool:
    """Send the next letter that is due; False when there is none.

    Raises:
        StoreError: the database refused; the letter is sent again after its lease.
    """
    with store.transaction() as connection:
        if not is_due(connection):
            return False
    with store.transaction(writes=True) as connection:
        letter = claim(connection)
    if letter is None:
        return True
    error, final = None, False
    try:
        send(letter, server)
    except smtplib.SMTPResponseException as refusal:
        error, final = f"the server answered {refusal.smtp_code}", refusal.smtp_code >= 500
    except smtplib.SMTPRecipientsRefused as refusal:
        codes = [code for code, _ in refusal.recipients.values()]
        error, final = f"the server refused the recipient: {codes[0]}", all(code >= 500 for code in codes)
    except (smtplib.SMTPException, OSError) as trouble:
        error = f"{type(trouble).__name__}: {trouble}"[:_MOST_ERROR]
    with store.transaction(writes=True) as connection:
        settle(connection, letter, error, final=final, chance=chance)
    return True


def send(letter: Letter, server: MailServer) -> None:
    """Hand a letter over to the server.

    Raises:
        smtplib.SMTPException, OSError: it did not take it, or there was no TLS to be had.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = server.sender, letter.recipient, letter.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(letter.created / SECOND, UTC))
    message["Message-ID"] = f"<{letter.id}@{server.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.body)
    with _connected(server) as smtp:
        if server.user is not None:
            smtp.login(server.user, server.password or "")
        smtp.send_message(message)


def _connected(server: MailServer) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=None if server.authority is None else str(server.authority))
    if server.at_once:
        return smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=context)
    smtp = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
    try:
        smtp.ehlo()
        # Whoever sits in between can hide the offer: without it nothing is sent but to this very machine.
        if smtp.has_extn("starttls") or not is_loopback(server.host):
            smtp.starttls(context=context)
            smtp.ehlo()
    except BaseException:
        smtp.close()
        raise
    return smtp
