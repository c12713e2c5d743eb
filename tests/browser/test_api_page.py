"""The page of the HTTP API in Chromium: it needs nothing but its own server."""

from playwright.sync_api import expect


def test_the_page_lists_the_routes_and_asks_no_other_site(open_page, url, keep):
    page = open_page("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/docs")
    expect(page.get_by_role("heading", name="Superdraft 0")).to_be_visible()
    page.get_by_role("button", name="POST /v1/drafts Drafts with").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.get_by_text('"drafts":').first).to_be_visible()
    keep(page, "api-page")
    assert len(asked) >= 4
    assert all(address.startswith((url, "data:")) for address in asked)
