// Drawing of the tree of drafts, as SVG: the latest request's snapshots, and a control to go back through its steps.

import { probability } from "./client/index.js";
import { rowsTo, treeOf } from "./tree.js";
import { formatPercent, numbered } from "./view.js";

const ROW_HEIGHT = 34;
const CHARACTER_WIDTH = 7.9; // of the page's monospaced labels, at most
const GAP = 26; // between columns, for the lines
const MARGIN = 12;
const HEAD_HEIGHT = 26; // of the line with numbers of rows
const MAX_ROOT_CHARACTERS = 14;

const byId = (id) => document.getElementById(id);

export class TreeView {
  #prompt = "";
  #id = null; // of the answer whose tree it is
  #steps = []; // number, drafts and rows of each snapshot, then those of the answer
  #usage = null;
  #isFollowing = true; // shows the latest step

  constructor() {
    byId("step").addEventListener("input", () => {
      this.#isFollowing = byId("step").valueAsNumber === this.#steps.length;
      this.#draw();
    });
    byId("how").addEventListener("toggle", () => this.#draw());
  }

  /**
   * Add a snapshot, or the answer, of the request for `prompt`; returns whether it is the request's first with drafts.
   * A tree stays until there are drafts for another one.
   */
  add(prompt, { id, step, drafts, rows_by_depth: rows, usage }) {
    const isFirst = id !== this.#id;
    if (isFirst && drafts.length === 0) return false;
    if (isFirst) {
      this.#id = id;
      this.#prompt = prompt;
      this.#steps = [];
      this.#usage = null;
      this.#isFollowing = true;
    }
    this.#steps.push({ step: step ?? this.#steps.at(-1)?.step ?? 1, drafts, rows: rows ?? usage.rows_by_depth });
    if (usage !== undefined) this.#usage = usage;
    byId("step").max = this.#steps.length;
    if (this.#isFollowing) byId("step").value = this.#steps.length;
    byId("step-label").hidden = this.#steps.length < 2;
    this.#draw();
    return isFirst;
  }

  #draw() {
    if (!byId("how").open || this.#steps.length === 0) return;
    const step = byId("step").valueAsNumber;
    byId("step-value").textContent = `${step} of ${this.#steps.length}`;
    byId("tree-caption").textContent = this.#caption(step);
    const tree = treeOf(this.#steps.slice(0, step));
    const rows = rowsTo(tree.depths, this.#steps[step - 1].rows);
    const drawing = new Drawing(tree, ending(this.#prompt), rows);
    const svg = byId("tree");
    svg.setAttribute("viewBox", `0 0 ${drawing.width} ${drawing.height}`);
    svg.setAttribute("width", drawing.width);
    svg.setAttribute("height", drawing.height);
    svg.replaceChildren(...drawing.marks);
  }

  #caption(step) {
    const { drafts } = this.#steps[step - 1];
    const begun = `${numbered(drafts.length, "draft")} of \u201c${ending(this.#prompt)}\u201d`;
    const texts = drafts.map((draft) => `${draft.text.trim()} (${formatPercent(probability(draft))})`).join("; ");
    const said = drafts.length > 0 ? `${begun}: ${texts}.` : `${begun}.`;
    return this.#usage === null || step < this.#steps.length ? said : `${said} ${rowsUsed(this.#usage)}`;
  }
}

/**
 * What the answer cost, hidden drafts included. Without superposition, each token of each draft but its last would need
 * a row.
 */
function rowsUsed({ forward_rows: rows, completion_tokens: tokens }) {
  return `The model ran ${numbered(rows, "row")}; all its drafts have ${numbered(tokens, "token")}.`;
}

/** The end of a prompt, from a word's beginning if possible. */
function ending(prompt) {
  const line = prompt.slice(prompt.lastIndexOf("\n") + 1);
  return line.length <= MAX_ROOT_CHARACTERS
    ? line
    : `\u2026${line.slice(-MAX_ROOT_CHARACTERS).replace(/^\S*\s(?=\S)/, "")}`;
}

/** The marks of a tree. Each depth has a column; `rows` is the number of rows that led to it. */
class Drawing {
  marks = [];
  #lefts = new Map(); // where each depth's labels begin
  #rootLabel;

  constructor(tree, rootLabel, rows) {
    this.#rootLabel = rootLabel;
    const widths = new Map(tree.depths.map((depth, index) => [depth, headOf(rows[index]).length]));
    this.#measure(tree.root, widths);
    this.width = MARGIN;
    for (const [depth, width] of widths) {
      this.#lefts.set(depth, this.width);
      this.width += width * CHARACTER_WIDTH + GAP;
    }
    this.height = HEAD_HEIGHT + tree.numLeaves * ROW_HEIGHT + MARGIN;
    tree.depths.forEach((depth, index) => {
      const head = headOf(rows[index]);
      if (head !== "") this.marks.push(textMark(this.#lefts.get(depth), HEAD_HEIGHT / 2, head, "head"));
    });
    this.#add(tree.root);
  }

  #measure(node, widths) {
    const width = this.#labelOf(node).length + chanceOf(node).length;
    widths.set(node.depth, Math.max(widths.get(node.depth), width));
    for (const child of node.children) this.#measure(child, widths);
  }

  #add(node) {
    const [left, y] = [this.#lefts.get(node.depth), yOf(node)];
    const label = this.#labelOf(node);
    const middle = left + label.length * CHARACTER_WIDTH;
    const right = middle + chanceOf(node).length * CHARACTER_WIDTH;
    for (const child of node.children) {
      this.marks.push(line(right, y, this.#lefts.get(child.depth), yOf(child), child));
      this.#add(child);
    }
    this.marks.push(textMark(left, y, label, node.isKept ? "node" : "node dropped"));
    if (node.draft !== null) this.marks.push(textMark(middle + CHARACTER_WIDTH, y, chanceOf(node).trim(), "leaf"));
  }

  #labelOf(node) {
    return node.depth === 0 ? this.#rootLabel : node.label.trim().replaceAll("\n", "\u21b5") || "\u2423";
  }
}

const headOf = (rows) => (rows == null ? "" : numbered(rows, "row"));
const chanceOf = (node) => (node.draft === null ? "" : ` ${formatPercent(probability(node.draft))}`);
const yOf = (node) => HEAD_HEIGHT + (node.row + 0.5) * ROW_HEIGHT;

function line(x1, y1, x2, y2, child) {
  const width = child.isKept ? 1.5 + 6 * Math.min(1, Math.exp(child.score)) : 1.5;
  const [start, end] = [x1 + 4 + width / 2, x2 - 4 - width / 2]; // the ends are round
  const middle = (start + end) / 2;
  const made = mark("path", child.isKept ? "link" : "link dropped");
  made.setAttribute("d", `M${start} ${y1}C${middle} ${y1} ${middle} ${y2} ${end} ${y2}`);
  made.setAttribute("stroke-width", width);
  return made;
}

function textMark(x, y, text, className) {
  const made = mark("text", className);
  made.setAttribute("x", x);
  made.setAttribute("y", y);
  made.textContent = text;
  return made;
}

function mark(tag, className) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  made.setAttribute("class", className);
  return made;
}
