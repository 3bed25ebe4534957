"""The bench's own code with tiny numbers: its findings must be correct; its speed does not matter here."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from deploy.local import Mesh
from tests.bench.measure import jobs, sale_records, statements
from tests.bench.mesh import Baseline, pids_of
from tests.bench.rivals.rival import CELERY, DBOS, PYTHON, Rival, RivalSpec
from tests.bench.rows import charging
from tests.bench.rows.paying import PayingPlan, PayingRows
from tests.bench.rows.placing import PlacingRows
from tests.bench.rows.rush import RushPlan, rush
from tests.bench.shop import Shop as Bench
from tests.bench.soak import soak
from tests.e2e.shop import Shop

PLAN = RushPlan(units=20, customers=40, attempts_each=5, limit=0, connections=16, idle_seconds=0)


@pytest.fixture(scope="module")
async def bench(mesh: Mesh) -> AsyncIterator[Bench]:
    """The bench's shop on the shared mesh; it leaves no open saga, because later tests check that nothing changes."""
    async with Bench.open(mesh.site) as opened:
        earlier = await opened.unsettled()
        yield opened
        await opened.settled(but=earlier)


@pytest.fixture(scope="module")
async def e(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Baseline]:
    async with Baseline.running(tmp_path_factory.mktemp("e")) as running:
        yield running


@pytest.fixture(autouse=True)
def _costs_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement may begin while the mesh is still busy."""
    monkeypatch.setattr(jobs, "_IDLE_CHECKS_MAX", 1)


async def test_bench_customers_are_ordinary_accounts(bench: Bench, shop: Shop) -> None:
    first, second = await bench.tokens(2)
    me = [(await shop.rest.as_(token).get("/v1/auth/me")).expect().json for token in (first, second)]
    assert me[0]["id"] != me[1]["id"]
    assert [user["roles"] for user in me] == [["customer"]] * 2
    login = {"email": me[0]["email"], "password": "correct horse"}
    token = (await shop.rest.post("/v1/auth/login", login)).expect().json["accessToken"]
    assert (await shop.rest.as_(token).get("/v1/auth/me")).json == me[0]


async def test_every_row_receives_only_expected_answers(bench: Bench, mesh: Mesh, e: Baseline) -> None:
    rows = PlacingRows(e, requests=20, pairs=1)
    await rows.warm_up()
    await rows.one_sale(bench, pids_of(mesh))
    await rows.spread(bench, pids_of(mesh), products=3)
    await rows.sold_out(bench, pids_of(mesh))

    assert [verdict.name for verdict in rows.verdicts] == [
        "order placed, 16 connections",
        "order placed, 64 connections",
        "order placed, 256 connections",
        "CPU per held unit, 16 → 256 connections",
        "order placed, spread, 256 connections",
        "sold out, 64 connections",
        "sold out, 256 connections",
    ]
    assert not [verdict.more for verdict in rows.verdicts if "but also" in verdict.more]


async def test_paid_orders_are_measured_with_and_without_watchers(
    bench: Bench, shop: Shop, mesh: Mesh, e: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "SERVER_COUNTS_SECONDS", 0)  # test_costs checks the server's exact counts
    plan = PayingPlan(orders=12, rounds=2, connections=8, watchers=5)
    rows = PayingRows(e, bench, pids_of(mesh), plan)
    verdicts = await rows.measure([])
    for order, token in zip(rows.watched_orders, await bench.tokens(plan.watchers), strict=True):
        (await shop.rest.as_(token).post(f"/v1/orders/{order}:cancel")).expect()

    assert [verdict.name for verdict in verdicts] == [
        "order paid, 8 connections",
        "order paid, watched by 5 streams",
        "transactions in orders' database, a paid order",
    ]
    assert not [verdict.more for verdict in verdicts if "but also" in verdict.more]


async def test_charges_and_webhooks_are_measured(bench: Bench, shop: Shop, mesh: Mesh, e: Baseline) -> None:
    # The open payments of earlier tests are looked up now and then, which are calls to the provider too.
    later = (
        "UPDATE payments SET next_check_time = next_check_time + interval '1 hour' WHERE next_check_time IS NOT NULL"
    )
    await shop.rows("payments", f"{later} RETURNING 1")
    rows = PayingRows(e, bench, pids_of(mesh), PayingPlan(orders=12, connections=8))
    _, calls = await charging.charges(rows, bench, pairs=1, idle_seconds=0.1)
    webhook = await charging.webhooks(e, bench, rows, requests=20, pairs=1)

    assert (calls.found, calls.met) == ("1.00", True), calls.more
    assert "but also" not in webhook.more


@pytest.mark.skipif(not PYTHON.exists(), reason="`make bench` installs the rivals")
@pytest.mark.parametrize("spec", [DBOS, CELERY], ids=lambda spec: spec.name)
async def test_rivals_complete_all_three_steps(bench: Bench, mesh: Mesh, spec: RivalSpec) -> None:
    spec = replace(spec, orders=20)
    async with Rival.running(spec, mesh.site, pids_of(mesh)) as rival:
        await rival.warm_up()
        before = Counter(await rival.effects())
        row = await rival.measure()
        done = Counter(await rival.effects()) - before

    assert done == {"reserve": 20, "charge": 20, "confirm": 20}
    assert row.result.answers == {"done": 20}
    assert row.cpu_us["its processes"] > 0


async def test_a_rush_is_consistent_and_its_statements_are_counted(
    bench: Bench, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "SERVER_COUNTS_SECONDS", 0)  # the server's exact counts do not matter here

    answers, sold, spent, _background = await rush(bench, pids_of(mesh), PLAN)

    assert answers.met, answers
    assert "180 × 400 SOLD_OUT" in answers.more
    assert sold.met, sold
    assert "20 reservations, 20 orders" in sold.more
    assert int(spent.found) >= 1


async def test_a_missing_unit_is_reported(bench: Bench, shop: Shop) -> None:
    sale, buyer = await bench.sale(2), await shop.a_buyer()
    (await buyer.buy(sale)).expect()

    found = sale_records.read(bench.site, sale["id"])

    assert sale_records.problems(found, allocation=2, wanted=1, limit=0) == []
    assert sale_records.problems(found, allocation=2, wanted=2, limit=0) == ["reservations take 1 units, not 2"]


async def test_a_soak_reports_the_memory_of_every_part(bench: Bench, mesh: Mesh) -> None:
    answers, *memory = await soak(bench, pids_of(mesh), attempts=100, customers=10, rounds=2)

    assert answers.met, answers
    assert {verdict.name for verdict in memory} == {f"memory of {part}" for part in pids_of(mesh)}
    assert all("MiB" in verdict.more for verdict in memory)
