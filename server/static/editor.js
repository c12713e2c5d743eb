// The text area with a draft in it.
//
// A text area cannot hold text that is not part of it. So its own letters are transparent, and a mirror under it, wrapped
// alike, shows the text with the draft at the caret. The caret, the selection and all editing are the text area's own.

const LETTER = /[\p{L}\p{N}_]/u;

export class Editor {
  /**
   * @param {HTMLTextAreaElement} area
   * @param {HTMLElement} mirror
   * @param {{change: function(), command: function(string): boolean}} handlers `change`: text or caret are new;
   *   `command`: a key for a draft was pressed; whether it had an effect, else the key does what it always does.
   */
  constructor(area, mirror, { change, command }) {
    this.area = area;
    this.mirror = mirror;
    this.ghost = "";
    this.isComposing = false;
    area.addEventListener("input", change);
    document.addEventListener("selectionchange", change);
    area.addEventListener("selectionchange", change); // where it does not reach the document
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

  /** Whether a draft can stand at the caret: nothing is selected, no word goes on behind it, no input method is at work. */
  get takesDrafts() {
    const { selectionStart, selectionEnd } = this.area;
    return selectionStart === selectionEnd && !this.isComposing && !LETTER.test(this.after.slice(0, 1));
  }

  composing(isComposing, change) {
    this.isComposing = isComposing;
    change();
  }

  /** Show text at the caret that is not there yet; none if it is empty. */
  showGhost(text) {
    this.ghost = text;
    this.draw();
  }

  draw() {
    const ghost = document.createElement("span");
    ghost.className = "ghost";
    ghost.textContent = this.ghost;
    // A line may break between a half typed word and the rest of it: it must not move while it is typed.
    const parts = this.ghost ? [this.before, document.createElement("wbr"), ghost, this.after] : [this.area.value];
    this.mirror.replaceChildren(...parts, "\u200b"); // a last line that is empty has a height, too
  }

  /** Type text at the caret. */
  insert(text) {
    this.area.focus();
    // Out of date in the standards' words, but nothing else keeps what browsers undo.
    if (!document.execCommand("insertText", false, text)) {
      const at = this.area.selectionEnd;
      this.area.setRangeText(text, at, at, "end");
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
  // By place, too: with Alt, some keyboards give another character.
  if (altKey && !control && (key === "]" || code === "BracketRight")) return "next";
  if (altKey && !control && (key === "[" || code === "BracketLeft")) return "previous";
  return null;
}
