"""Composes and starts the identity service."""

from contextlib import closing
from functools import partial

from services.chassis.data import idempotency
from services.chassis.data.sealing import derive_key
from services.chassis.process import Command, Process, run
from services.identity import actions, cli, keys
from services.identity.passwords import Passwords
from services.identity.rpc import IdentityService
from services.identity.settings import Settings
from services.identity.sql import sessions
from services.identity.tokens import Keyring, KeySealer
from stampede.identity.v1.identity_service_pb2_grpc import add_IdentityServiceServicer_to_server


async def main(config: Settings) -> None:
    secrets, lifetimes = config.key_secret.values(), config.lifetimes()
    keyring, sealer = Keyring(lifetimes), KeySealer(*secrets)
    passwords = Passwords(
        rounds=config.password_rounds,
        threads=config.password_threads,
        patience_seconds=config.password_patience_seconds,
    )
    admin_password = config.admin_password.get_secret_value() if config.admin_password else None
    with closing(passwords):
        async with Process("identity", config, fetch_jwks=keyring.jwks) as process:
            await keys.rotate_keys(process.db, sealer, lifetimes)
            await keys.load_keys(process.db, sealer, keyring)
            await actions.ensure_first_admin(process.db, passwords, admin_password)
            process.run_cleanups(idempotency.CLEANUP, *sessions.CLEANUPS)
            process.background("keys", partial(keys.follow_keys, process.db, sealer, keyring))
            pepper = derive_key(secrets[0], "stampede request digests")
            service = IdentityService(process.db, passwords, keyring, pepper=pepper)
            add_IdentityServiceServicer_to_server(service, process.server)
            await process.serve("stampede.identity.v1.IdentityService")


if __name__ == "__main__":
    signing_keys = Command("signing keys: list them, or replace stolen ones", cli.describe, cli.run)
    run("identity", Settings, main, commands={"keys": signing_keys})
