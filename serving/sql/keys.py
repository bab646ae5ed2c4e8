"""API keys, of which only hashes are kept, and the answers kept for requests that are sent again."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serving.sql.audit import record
from serving.sql.database import Database
from serving.sql.tables import api_key, idempotency
from udr.errors import ConflictError, NotFoundError

__all__ = ["Answers", "Kept", "KeyRow", "Keys", "Role"]

Role = Literal["read", "write", "admin"]
_PREFIX = "udr_"  # so that a key that leaked is found by a search
_UNANSWERED = "Idempotency-Key: the first request is being worked on; ask again in a second"
_WORKED_ON = 120.0  # seconds after which a request without an answer may be begun again


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key without its secret; `pools` None: all of them."""

    id: int
    name: str
    hash: str
    role: Role
    pools: Sequence[str] | None
    expires: float | None
    created: float


class Kept(NamedTuple):
    """An answer that was given before."""

    status: int
    body: bytes


class Keys:
    """Keys in the database. A secret has 256 random bits, so a plain hash of it tells nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, name: str, role: Role, pools: Sequence[str] | None = None, expires: float | None = None
    ) -> tuple[KeyRow, str]:
        """Make a key and give its secret, which nobody can read again.

        Raises:
            ConflictError: the name is taken.
        """
        secret = _PREFIX + secrets.token_urlsafe(32)
        values = {
            "name": name,
            "hash": _hash(secret),
            "role": role,
            "pools": None if pools is None else list(pools),
            "expires": expires,
            "created": time.time(),
        }
        with self._database.write() as c:
            try:
                row = KeyRow(*c.execute(sa.insert(api_key).values(values).returning(*api_key.c)).one())
            except IntegrityError:
                raise ConflictError(f"key {name!r} exists already") from None
            record(c, "key.create", None, name=name, role=role, pools=values["pools"], expires=expires)
        return row, secret

    def find(self, secret: str) -> KeyRow | None:
        """The key of that secret, unless it has expired."""
        if not secret.startswith(_PREFIX):
            return None
        with self._database.read(fresh=True) as c:
            row = c.execute(sa.select(api_key).where(api_key.c.hash == _hash(secret))).one_or_none()
        if row is None or (row.expires is not None and row.expires <= time.time()):
            return None
        return KeyRow(*row)

    def all(self) -> list[KeyRow]:
        """Keys by name, those that have expired among them."""
        with self._database.read(fresh=True) as c:
            return [KeyRow(*row) for row in c.execute(sa.select(api_key).order_by(api_key.c.name))]

    def delete(self, name: str) -> None:
        """Revoke a key.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._database.write() as c:
            if not c.execute(sa.delete(api_key).where(api_key.c.name == name)).rowcount:
                raise NotFoundError(f"no key {name!r}")
            record(c, "key.delete", None, name=name)


class Answers:
    """What was answered to requests that carried an Idempotency-Key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, key: str, fingerprint: str) -> Kept | None:
        """Take a request on: None, or the answer that it got before.

        Raises:
            ConflictError: the key was used for another request, or this one is being worked on.
        """
        now = time.time()
        with self._database.write() as c:
            row = c.execute(sa.select(idempotency).where(idempotency.c.key == key).with_for_update()).one_or_none()
            if row is not None and row.fingerprint != fingerprint:
                raise ConflictError("Idempotency-Key: used before for another request")
            if row is not None and row.status is not None:
                return Kept(row.status, row.body)
            if row is not None and row.created > now - _WORKED_ON:
                raise ConflictError(_UNANSWERED, 1)
            c.execute(sa.delete(idempotency).where(idempotency.c.key == key))
            try:
                c.execute(sa.insert(idempotency).values(key=key, fingerprint=fingerprint, created=now))
            except IntegrityError:
                raise ConflictError(_UNANSWERED, 1) from None
        return None

    def keep(self, key: str, answer: Kept | None) -> None:
        """Keep an answer; None: it must not be repeated, so forget the request."""
        own = idempotency.c.key == key
        with self._database.write() as c:
            if answer is None:
                c.execute(sa.delete(idempotency).where(own))
            else:
                c.execute(sa.update(idempotency).where(own).values(status=answer.status, body=answer.body))

    def forget(self, before: float) -> None:
        """Forget what is older than that."""
        with self._database.write() as c:
            c.execute(sa.delete(idempotency).where(idempotency.c.created < before))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
