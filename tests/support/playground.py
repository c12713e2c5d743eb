"""Elements of the playground page, located as a user would find them."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect


def text_area(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Text", exact=True)


def write(page: Page, text: str) -> None:
    text_area(page).click()
    page.keyboard.type(text)


def unfold(page: Page, name: str) -> None:
    """Open a fold, if it is closed."""
    fold = page.locator("details", has=page.get_by_role("heading", name=name))
    if fold.get_attribute("open") is None:
        fold.locator("summary").click()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def drafts(page: Page) -> Locator:
    return page.get_by_role("region", name="Drafts").get_by_role("listitem")


def expect_text(page: Page, text: str) -> None:
    expect(text_area(page)).to_have_value(text)


def expect_ghost(page: Page, text: str) -> None:
    """Wait for this ghost text at the caret, including spaces, or for no ghost text if `text` is empty."""
    if not text:
        expect(page.locator(".ghost")).to_have_count(0)
        return
    shown = "text => document.querySelector('.ghost')?.textContent === text"
    page.wait_for_function(shown, arg=text)
    expect(page.locator(".ghost")).to_be_visible()


def check_accessibility(page: Page) -> None:
    report = Axe().run(page, options={"resultTypes": ["violations"]})
    assert report.violations_count == 0, report.generate_report()
