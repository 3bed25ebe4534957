"""Puts identity together and runs it: `python -m services.identity [serve|migrate]`."""

from contextlib import closing
from functools import partial

from services.chassis.data import idempotency
from services.chassis.process import Process, run
from services.identity import actions, worker
from services.identity.actions import Signer
from services.identity.passwords import Passwords
from services.identity.rpc import IdentityService
from services.identity.settings import Settings
from services.identity.tokens import Keyring, Vault
from stampede.identity.v1.identity_service_pb2_grpc import add_IdentityServiceServicer_to_server


async def main(config: Settings) -> None:
    keyring, lifetimes = Keyring(), config.lifetimes()
    vault = Vault(config.key_secret.get_secret_value())
    passwords = Passwords(
        rounds=config.password_rounds, threads=config.password_threads, waiting_most=config.password_queue
    )
    admin_password = config.admin_password.get_secret_value() if config.admin_password else None
    with closing(passwords):
        async with Process("identity", config, fetch_jwks=keyring.jwks) as process:
            await actions.rotate_keys(process.db, vault, lifetimes)
            await actions.load_keys(process.db, vault, keyring)
            await actions.ensure_first_admin(process.db, passwords, admin_password)
            process.forget(idempotency.FORGET)
            process.background("keys", partial(worker.follow_keys, process.db, vault, keyring))
            process.background("house", partial(worker.keep_house, process.db, vault, lifetimes))
            service = IdentityService(process.db, passwords, Signer(keyring, lifetimes), vault)
            add_IdentityServiceServicer_to_server(service, process.server)
            await process.serve("stampede.identity.v1.IdentityService")


if __name__ == "__main__":
    run("identity", Settings, main)
