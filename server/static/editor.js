// Text area that shows a draft at the caret.
//
// A text area cannot display text that is not part of its value. Its own text is therefore transparent, and a mirror
// below it, with the same line breaks, shows the text and the draft. The text area still provides the caret, the
// selection and all editing.

// What follows the caret on its line. Closing brackets and the like do not make it the inside of a line, as for the
// server.
const REST_OF_LINE = /^[^\n]*/;
const CLOSERS = /^[)\]}"'`;:,\s]*$/;

export class Editor {
  /**
   * @param {HTMLTextAreaElement} area
   * @param {HTMLElement} mirror
   * @param {{change: function(), command: function(string): boolean}} handlers `change` is called when the text or the
   *   caret changes. `command` is called with a shortcut's command; if it returns false, the key has its usual effect.
   */
  constructor(area, mirror, { change, command }) {
    this.area = area;
    this.mirror = mirror;
    this.ghost = this.replaced = "";
    this.isComposing = false;
    area.addEventListener("input", change);
    document.addEventListener("selectionchange", change);
    area.addEventListener("selectionchange", change); // some browsers do not send it to the document
    area.addEventListener("compositionstart", () => this.composing(true, change));
    area.addEventListener("compositionend", () => this.composing(false, change));
    area.addEventListener("keydown", (event) => {
      const name = this.isComposing || event.isComposing ? null : commandOf(event);
      if (name !== null && command(name)) event.preventDefault();
    });
    this.draw();
  }

  get before() {
    return this.area.value.slice(0, this.area.selectionEnd);
  }

  get after() {
    return this.area.value.slice(this.area.selectionEnd);
  }

  /** Whether a draft can be shown: no selection, and no input method composing. */
  get takesDrafts() {
    const { selectionStart, selectionEnd } = this.area;
    return selectionStart === selectionEnd && !this.isComposing;
  }

  /** Whether the caret is inside a line, so that a draft must fit the rest of it. */
  get isInsideLine() {
    return !CLOSERS.test(REST_OF_LINE.exec(this.after)[0]);
  }

  composing(isComposing, change) {
    this.isComposing = isComposing;
    change();
  }

  /** Show `text` at the caret as ghost text, and strike out what it `replaces` there; an empty string removes it. */
  showGhost(text, replaces = "") {
    [this.ghost, this.replaced] = [text, replaces];
    this.draw();
  }

  draw() {
    const ghost = document.createElement("span");
    ghost.className = "ghost";
    ghost.textContent = this.replaced ? `\u2009\u2192\u2009${this.ghost}` : this.ghost;
    const struck = document.createElement("s");
    struck.textContent = this.replaced;
    const kept = this.before.slice(0, this.before.length - this.replaced.length);
    // A line may break between a half-typed word and the rest of it, so that the typed part does not move.
    const parts = this.ghost ? [kept, struck, document.createElement("wbr"), ghost, this.after] : [this.area.value];
    this.mirror.replaceChildren(...parts, "\u200b"); // gives an empty last line its height
  }

  /** Put `text` in place of all text; the browser can undo it. */
  replaceAll(text) {
    this.area.focus();
    this.area.select();
    this.insert(text);
  }

  /** Insert text at the caret, in place of a selection and of the last `numReplaced` characters before the caret. */
  insert(text, numReplaced = 0) {
    this.area.focus();
    if (numReplaced > 0) this.area.setSelectionRange(this.before.length - numReplaced, this.before.length);
    // `execCommand` is deprecated, but no other method keeps the browser's undo history.
    if (!document.execCommand("insertText", false, text)) {
      this.area.setRangeText(text, this.area.selectionStart, this.area.selectionEnd, "end");
      this.area.dispatchEvent(new Event("input"));
    }
  }
}

function commandOf(event) {
  const { key, code, altKey, shiftKey } = event;
  const control = event.ctrlKey || event.metaKey;
  if (key === "Tab" && !altKey && !shiftKey && !control) return "accept";
  if (key === "Escape") return "dismiss";
  if (key === "ArrowRight" && control && !altKey && !shiftKey) return "acceptWord";
  // Also compare the key's position: with Alt, some keyboard layouts produce another character.
  if (altKey && !control && (key === "]" || code === "BracketRight")) return "next";
  if (altKey && !control && (key === "[" || code === "BracketLeft")) return "previous";
  if (altKey && !control && (key === "\\" || code === "Backslash")) return "ask";
  return null;
}
