"""What a change may depend on (If-Match): that what it changes is still as the caller has read it."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from serving.sql.rows import PoolRow, hash_of, known
from serving.sql.store import First
from serving.sql.tables import pool
from udr.errors import PreconditionFailed
from udr.types import Demonstration

__all__ = ["check_match", "demonstration_tag", "pool_tag", "while_demonstration", "while_pool"]


def pool_tag(row: PoolRow) -> str:
    """The ETag of a pool: other after every write, switch, roll-back, and change of its front."""
    state = repr((row.id, row.seq, row.size, row.active, row.previous, row.front))
    return f'"{hashlib.blake2b(state.encode(), digest_size=16).hexdigest()}"'


def demonstration_tag(d: Demonstration) -> str:
    """The ETag of a demonstration: of all that it holds."""
    return f'"{hash_of(d)}"'


def check_match(wanted: str, tag: str | None, what: str) -> None:
    """Compare what an If-Match asks for with the ETag of what is there (None: nothing is).

    Raises:
        PreconditionFailed: they differ.
    """
    if tag is None:
        raise PreconditionFailed(f"{what} is not there any more")
    if wanted.strip() != "*" and tag not in [part.strip() for part in wanted.split(",")]:
        raise PreconditionFailed(f"{what} has changed since it was read; read it again")


def while_pool(pool_id: int, wanted: str | None) -> First | None:
    """For the transaction of a change: refuses it unless the pool is as wanted; None where nothing is asked for."""
    if wanted is None:
        return None

    def check(c: sa.Connection) -> bool:
        row = c.execute(sa.select(pool).where(pool.c.id == pool_id).with_for_update()).one_or_none()
        check_match(wanted, None if row is None else pool_tag(PoolRow(*row)), "the pool")
        return True

    return check


def while_demonstration(pool_id: int, key: str, wanted: str | None) -> First | None:
    """As `while_pool`, of a demonstration."""
    if wanted is None:
        return None

    def check(c: sa.Connection) -> bool:
        _, content = known(c, pool_id, [key]).get(key, (0, None))
        check_match(wanted, None if content is None else f'"{content}"', f"demonstration {key!r}")
        return True

    return check
