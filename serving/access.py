"""Who calls, and what they may: keys, roles, rates; without a key, from where."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from anyio.to_thread import run_sync
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from serving.settings import is_loopback
from serving.sql.keys import KeyRow, Keys, Role
from udr.errors import ConfigError

__all__ = ["ANYONE", "ROLES", "Access", "Caller", "parse_hosts", "parse_rate"]

ROLES: tuple[Role, ...] = ("read", "write", "admin")  # each may do what those before it may
_REMEMBERED = 5.0  # seconds for which a key is not looked up again: so long a revoked one may still be used
_MOST = 4096  # keys remembered at a time
_SAFE = ("GET", "HEAD", "OPTIONS")  # change nothing, and pages of other sites may not read their answers
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:@/,]+)(:\d+)?")


class Caller(NamedTuple):
    """Whoever sent a request."""

    name: str
    role: Role
    pools: Sequence[str] | None = None  # the only ones it may touch; None: all

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)

    def sees(self, pool: str) -> bool:
        return self.pools is None or pool in self.pools


ANYONE = Caller("anyone", "admin")
"""The caller of a service on loopback that asks for no key."""


class Access:
    """Finds out who calls.

    Args:
        keys: in the database.
        admin_key: of the settings; "" lets everyone in.
        rate: requests that one caller may send, as `100/second`; None: any number.
        hosts: names under which a service without a key is asked, beside those of loopback.
    """

    def __init__(
        self, keys: Keys, admin_key: str, rate: RateLimitItem | None = None, hosts: Collection[str] = ()
    ) -> None:
        self._keys = keys
        self._hosts = hosts
        self._admin_key = admin_key.encode()
        self._rate = rate
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._known: dict[str, tuple[float, KeyRow | None]] = {}

    async def caller(self, authorization: str | None) -> Caller | None:
        """Whoever has the key in this header; None: nobody.

        Raises:
            StoreUnavailable: the key is not that of the settings, and the database cannot be asked.
        """
        if not self._admin_key:
            return ANYONE
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        secret = given.strip()
        if secrets.compare_digest(secret.encode(), self._admin_key):
            return Caller("admin", "admin")
        now = time.time()
        asked, row = self._known.get(secret, (0.0, None))
        if now - asked > _REMEMBERED:
            row = await run_sync(self._keys.find, secret)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[secret] = now, row
        if row is None or (row.expires is not None and row.expires <= now):
            return None
        return Caller(row.name, row.role, row.pools)

    def from_elsewhere(self, method: str, host: str, origin: str | None) -> str | None:
        """Why a request may come from a web page of another site, which could do as it likes without a key.

        Such a page reaches loopback through the user's own browser: under a name of its own that leads here, which
        `host` then holds, or by a request whose `origin` it is. None: it does not, or a key is asked for.
        """
        if self._admin_key:
            return None
        if not self._is_ours(host):
            return f"host {host!r}: without UDR_KEY only names of loopback and those in UDR_HOSTS are answered"
        if method in _SAFE or origin is None:
            return None
        place = origin.partition("://")[2].lower()
        if place == host.lower() or _host_name(place) in self._hosts:
            return None
        return f"origin {origin!r}: without UDR_KEY no page of another site may send this"

    def _is_ours(self, host: str) -> bool:
        name = _host_name(host)
        return is_loopback(name) or name in self._hosts

    def seconds_to_wait(self, caller: Caller) -> int:
        """0 where the caller may send a request now."""
        if self._rate is None or self._limiter.hit(self._rate, caller.name):
            return 0
        return max(1, math.ceil(self._limiter.get_window_stats(self._rate, caller.name).reset_time - time.time()))


def parse_rate(text: str) -> RateLimitItem | None:
    """`100/second`, `5000/hour`; empty: None.

    Raises:
        ConfigError: not a rate.
    """
    try:
        return parse(text) if text else None
    except ValueError:
        raise ConfigError(f"rate {text!r}: expected a number and a unit, as 100/second or 5000/hour") from None


def parse_hosts(text: str) -> frozenset[str]:
    """`udr.example,10.0.0.5`; empty: none.

    Raises:
        ConfigError: not names or addresses alone.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        found = _HOST.fullmatch(name)
        if found is None or found[2]:
            raise ConfigError(f"hosts {name!r}: expected names or addresses without ports, as udr.example,10.0.0.5")
    return frozenset(map(_host_name, names))


def _host_name(place: str) -> str:
    """The name or address in HOST or HOST:PORT; "": neither."""
    found = _HOST.fullmatch(place)
    return found[1].strip("[]").lower() if found else ""
