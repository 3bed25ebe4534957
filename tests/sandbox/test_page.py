"""The page in a browser, and the same steps over plain HTTP, which need none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import stripe
from aiohttp import web

from tests.sandbox.conftest import Provider
from tests.sandbox.test_checkout import found, opened

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
_HTML = {"Accept": "text/html", "Content-Type": "application/x-www-form-urlencoded"}


class Shop:
    """The pages to which Checkout sends its buyer back."""

    async def start(self) -> None:
        self.visits: list[str] = []
        self._runner = web.ServerRunner(web.Server(self._answer))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    def session(self, **more: Any) -> dict[str, Any]:
        return {
            "success_url": f"{self.url}/paid?session={{CHECKOUT_SESSION_ID}}",
            "cancel_url": f"{self.url}/cart",
            **more,
        }

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.path != "/favicon.ico":
            self.visits.append(request.path_qs)
        return web.Response(text=f"<h1>Shop {request.path}</h1>", content_type="text/html")


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium; the tests over HTTP cover the same steps")
    async with playwright.async_playwright() as driver:
        started = await driver.chromium.launch(executable_path=str(CHROMIUM), args=_FLAGS)
        yield started
        await started.close()


@pytest.fixture
async def tab(provider: Provider, browser: Any) -> AsyncIterator[Any]:
    """A page of a real browser. Requests to other addresses than this machine's fail the test."""
    page = await browser.new_page()
    problems: list[str] = []
    page.on("request", lambda request: "//127.0.0.1:" in request.url or problems.append(request.url))
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.set_default_timeout(20_000)
    yield page
    await page.close()
    # A decline is answered with 402, which browsers write to the console.
    assert not [problem for problem in problems if "402" not in problem and "favicon" not in problem]


async def post(provider: Provider, url: str, **form: str) -> tuple[int, str, str]:
    async with provider.http.post(url, data=form, headers=_HTML, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location", ""), await answer.text()


async def test_a_buyer_pays_on_the_page_over_http(provider: Provider, shop: Shop) -> None:
    session = await opened(provider, **shop.session())
    assert session.url
    async with provider.http.get(session.url) as answer:
        assert "25.00 usd" in await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert shop.url in answer.headers["Content-Security-Policy"]
    status, _, text = await post(provider, session.url, payment_method="pm_card_chargeDeclined", do="pay")
    assert (status, "Your card was declined." in text) == (402, True)
    status, location, _ = await post(provider, session.url, payment_method="pm_card_visa", do="pay", email="a@b.test")
    assert (status, location) == (303, f"{shop.url}/paid?session={session.id}")
    done = await found(provider, session)
    assert done.payment_status == "paid"
    assert done.customer_details
    assert done.customer_details.email == "a@b.test"
    async with provider.http.get(session.url, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, location)


async def test_a_challenge_leads_back_to_checkout_over_http(provider: Provider, shop: Shop) -> None:
    session = await opened(provider, **shop.session())
    assert session.url
    card = "pm_card_authenticationRequired"
    for outcome in ("fail", "succeed"):
        _, bank, _ = await post(provider, session.url, payment_method=card, do="pay")
        status, location, _ = await post(provider, provider.url + bank, outcome=outcome)
        assert (status, location.partition("?")[0]) == (303, session.url)
        async with provider.http.get(provider.url + bank) as answer:
            assert answer.status == 410
    async with provider.http.get(location, allow_redirects=False) as answer:
        assert answer.headers["Location"].startswith(f"{shop.url}/paid")


async def test_a_buyer_goes_back_or_comes_too_late_over_http(provider: Provider, shop: Shop) -> None:
    session = await opened(provider, **shop.session())
    assert session.url
    status, location, _ = await post(provider, session.url, do="cancel")
    assert (status, location) == (303, f"{shop.url}/cart")
    assert (await found(provider, session)).status == "open"
    await provider.sdk().v1.checkout.sessions.expire_async(session.id)
    for answer in (await post(provider, session.url, payment_method="pm_card_visa", do="pay"),):
        assert answer[0] == 410
    assert (await provider.sdk().v1.payment_intents.list_async()).data == []


async def test_the_page_shows_values_as_text(provider: Provider, shop: Shop) -> None:
    bad = "<script>alert(1)</script>"
    session = await opened(
        provider, **shop.session(), customer_email=f"{bad}@b.test",
        line_items=[{"price_data": {"currency": "usd", "unit_amount": 999, "product_data": {"name": bad}}}],
    )  # fmt: skip
    assert session.url
    async with provider.http.get(session.url) as answer:
        text = await answer.text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


async def test_a_page_of_another_origin_commands_nothing(provider: Provider) -> None:
    url = f"{provider.url}/_sandbox/faults"
    async with provider.http.post(url, json={"error_500": True}, headers={"Origin": "https://evil.test"}) as answer:
        assert answer.status == 403
    async with provider.http.post(url, json={"error_500": False}, headers={"Origin": provider.url}) as answer:
        assert answer.status == 200


async def test_the_overview_has_all_objects_with_their_commands(provider: Provider, order: Any) -> None:
    sdk = provider.sdk()
    await opened(provider)
    waiting = await sdk.v1.payment_intents.create_async(order("pm_card_authenticationRequired"))
    await sdk.v1.payment_intents.create_async(order("pm_card_createDispute"))
    overview = await provider.control("GET", "overview")
    groups = {group["title"]: group["objects"] for group in overview["groups"]}
    assert [len(groups[f"Stripe: {kind}"]) for kind in ("Checkout Sessions", "PaymentIntents", "disputes")] == [1, 2, 1]
    (challenged,) = (each for each in groups["Stripe: PaymentIntents"] if each["id"] == waiting.id)
    assert [action["label"] for action in challenged["actions"]] == ["Approve", "Refuse"]
    for group in overview["groups"]:
        for each in group["objects"]:
            for action in each["actions"][:1]:
                await provider.control("POST", action["path"], action["body"])
    async with provider.http.get(provider.url) as answer:
        assert answer.status == 200


async def test_a_buyer_pays_in_a_browser(provider: Provider, shop: Shop, tab: Any) -> None:
    session = await opened(provider, **shop.session())
    await tab.goto(session.url)
    await tab.fill("#email", "buyer@example.com")
    await tab.select_option("#method", "pm_card_chargeDeclined")
    await tab.click("button[value=pay]")
    assert await tab.inner_text("[role=alert]") == "Your card was declined."
    await tab.fill("#email", "buyer@example.com")
    await tab.select_option("#method", "pm_card_authenticationRequired")
    await tab.click("button[value=pay]")
    assert "25.00 usd" in await tab.inner_text("h1")
    await tab.click("button[value=succeed]")
    await tab.wait_for_url(f"{shop.url}/paid?session={session.id}")
    assert shop.visits == [f"/paid?session={session.id}"]
    assert (await found(provider, session)).payment_status == "paid"


async def test_a_buyer_goes_back_to_the_shop_in_a_browser(provider: Provider, shop: Shop, tab: Any) -> None:
    session = await opened(provider, **shop.session())
    await tab.goto(session.url)
    await tab.click("button[value=cancel]")
    await tab.wait_for_url(f"{shop.url}/cart")
    assert (await found(provider, session)).status == "open"


@pytest.mark.parametrize(
    ("button", "redirect_status", "status"),
    [("succeed", "succeeded", "succeeded"), ("fail", "failed", "requires_payment_method")],
)
async def test_a_challenge_is_decided_in_a_browser(
    provider: Provider, shop: Shop, tab: Any, order: Any, button: str, redirect_status: str, status: str
) -> None:
    sdk = provider.sdk()
    waiting = await sdk.v1.payment_intents.create_async(
        order("pm_card_authenticationRequired", return_url=f"{shop.url}/orders")
    )
    assert isinstance(waiting.next_action, stripe.PaymentIntent.NextAction)
    await tab.goto(waiting.next_action.redirect_to_url.url)  # type: ignore[union-attr]
    await tab.click(f"button[value={button}]")
    await tab.wait_for_url(f"{shop.url}/orders?**redirect_status={redirect_status}")
    assert (await sdk.v1.payment_intents.retrieve_async(waiting.id)).status == status


async def test_the_overview_runs_commands_in_a_browser(provider: Provider, tab: Any, order: Any) -> None:
    sdk = provider.sdk()
    waiting = await sdk.v1.payment_intents.create_async(order("pm_card_authenticationRequired"))
    await tab.goto(provider.url)
    await tab.click(f"#{waiting.id} button:text('Approve')")
    await tab.wait_for_selector(f"#{waiting.id} td.succeeded")
    assert (await sdk.v1.payment_intents.retrieve_async(waiting.id)).status == "succeeded"
    await tab.click(f"#{waiting.id} button:text('Dispute')")
    await tab.wait_for_selector("td.needs_response")
    await tab.click("button:text('Win')")
    await tab.wait_for_selector("td.won")
    assert [d.status for d in (await sdk.v1.disputes.list_async()).data] == ["won"]
