"""/access/ticket, /access/vncticket and /access/password: proving who one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from appliance.web import keys
from appliance.web.api.access_params import NewPassword, OwnPassword, UserParams
from appliance.web.registry import ANYONE, LOGGED_IN, Call, PveBool, PveList, Resource

if TYPE_CHECKING:
    from appliance.services.access import Login

api = Resource()

AclPath = Annotated[str, Meta(max_length=64, description="with `privs`: check these on this path and make no ticket")]
Credential = Annotated[str, Meta(max_length=4096)]


class LoginReply(msgspec.Struct, kw_only=True):
    """A ticket (cookie `PVEAuthCookie`) and the token writes must carry (header `CSRFPreventionToken`).

    With `NeedTFA` the ticket is a challenge: repeat the call with it as `tfa-challenge` and `totp:CODE` as password.
    `cap` tells per area which privileges are held somewhere in it.
    """

    username: str
    ticket: str | None = None
    csrf: str | None = msgspec.field(name="CSRFPreventionToken", default=None)
    cap: dict[str, dict[str, bool]] | None = None
    need_tfa: bool | None = msgspec.field(name="NeedTFA", default=None)


class LoginParams(msgspec.Struct, kw_only=True):
    """Credentials."""

    username: Annotated[str, Meta(max_length=64, description="name@realm, or the name alone beside `realm`")]
    password: Annotated[Credential, Meta(description="the password, a ticket still valid (renewal), or totp:CODE")]
    realm: Annotated[str, Meta(max_length=32, description="added to `username`")] | None = None
    otp: Annotated[Credential, Meta(description="a code of the second factor, sent along")] | None = None
    tfa_challenge: Annotated[Credential, Meta(description="the challenge ticket that `password` answers")] | None = (
        msgspec.field(name="tfa-challenge", default=None)
    )
    path: AclPath | None = None
    privs: Annotated[PveList, Meta(description="see `path`")] = ()
    new_format: Annotated[PveBool, Meta(description="accepted for compatibility, always on")] = msgspec.field(
        name="new-format", default=True
    )


class ConsoleTicketParams(msgspec.Struct, kw_only=True):
    """A console ticket and what it should be good for."""

    authid: Annotated[str, Meta(max_length=130, description="the user or token it was made for")]
    vncticket: Annotated[str, Meta(max_length=512, description="the console ticket")]
    path: Annotated[str, Meta(max_length=64, description="the ACL path of the console")]
    privs: Annotated[PveList, Meta(description="privileges that must be held there")]
    port: Annotated[int, Meta(description="accepted for compatibility")] | None = None


class PasswordParams(UserParams, kw_only=True):
    """A new password."""

    password: NewPassword
    confirmation_password: OwnPassword | None = msgspec.field(name="confirmation-password", default=None)


@api.get("/access/ticket", summary="Nothing: there is no ticket without credentials", allow=ANYONE)
async def read_ticket(call: Call) -> None:
    """For formatters that want to show a login page."""


@api.post("/access/ticket", summary="Log in, renew a ticket, or check credentials", allow=ANYONE, returns=LoginReply,
          audited_by_service=True)  # fmt: skip
async def create_ticket(call: Call, params: LoginParams) -> LoginReply:
    """Failures all read alike, and are limited in rate by address and by user."""
    username = f"{params.username}@{params.realm}" if params.realm else params.username
    access = call.services.access
    if params.path is not None and params.privs:
        login = await access.verify_credentials(
            username, params.password, otp=params.otp, path=params.path, privileges=params.privs, remote=call.remote
        )
        return LoginReply(username=login.username, cap=_cap(login))
    login = await access.login(
        username, params.password, otp=params.otp, challenge=params.tfa_challenge, remote=call.remote
    )
    return LoginReply(
        username=login.username,
        ticket=login.ticket,
        csrf=login.csrf,
        cap=None if login.need_tfa else _cap(login),
        need_tfa=True if login.need_tfa else None,
    )


@api.delete("/access/ticket", summary="Log out: end this ticket", allow=LOGGED_IN)
async def delete_ticket(call: Call) -> None:
    """Other tickets of the user go on. Does nothing for API tokens."""
    if ticket := call.request[keys.CALLER].ticket:
        await call.services.access.logout(ticket)


@api.post("/access/vncticket", summary="Check a console ticket", allow=ANYONE)
async def check_console_ticket(call: Call, params: ConsoleTicketParams) -> None:
    """Refused unless the ticket is valid on the path and its owner, `authid`, holds the privileges there."""
    call.services.access.verify_console(params.authid, params.vncticket, path=params.path, privileges=params.privs)


@api.put("/access/password", summary="Change a password", allow=LOGGED_IN)
async def change_password(call: Call, params: PasswordParams) -> None:
    """One's own, or (User.Modify on a group of the user, Realm.AllocateUser on the realm) somebody else's.

    API tokens may not. All but administrators who change somebody else's confirm with their own password. Ends the
    user's sessions.
    """
    await call.services.access.change_password(
        call.identity, params.userid, params.password, confirmation=params.confirmation_password
    )


def _cap(login: Login) -> dict[str, dict[str, bool]]:
    return {area: dict(privileges) for area, privileges in login.capabilities.items()}
