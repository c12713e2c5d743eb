// Tree of growing drafts, made from the snapshots of a stream. Independent of the page and the server.

/**
 * A node: what a step added to a draft.
 *
 * @typedef {{text: string, label: string, depth: number, children: Node[], draft: object | null, isKept: boolean,
 *   score: number, row: number}} Node
 * `text` is the draft up to here. `depth` is the number of the step. `draft` is the draft that ends here now, if one
 * does. `isKept`: a draft leads through here now, and `score` is that of the best one. `row` is the node's place from
 * top to bottom, in leaves.
 */

/**
 * The tree after these steps. Each has a number and the drafts `{text, score}` of a snapshot or the answer, best first.
 *
 * @param {{step: number, drafts: object[]}[]} steps
 * @returns {{root: Node, depths: number[], numLeaves: number}} `depths`: those that have nodes.
 */
export function treeOf(steps) {
  const root = newNode("", "", 0);
  const nodes = [root];
  for (const { step, drafts } of steps) {
    const before = [...nodes]; // a step adds to what earlier steps had
    for (const { text } of drafts) {
      if (nodes.some((node) => node.text === text)) continue;
      const begins = before.filter((node) => text.startsWith(node.text));
      const parent = begins.reduce((best, node) => (node.text.length > best.text.length ? node : best));
      const node = newNode(text, text.slice(parent.text.length), step);
      parent.children.push(node);
      nodes.push(node);
    }
  }
  for (const draft of steps.at(-1)?.drafts ?? []) markKept(root, draft);
  const depths = [...new Set(nodes.map((node) => node.depth))].sort((a, b) => a - b);
  return { root, depths, numLeaves: placed(root, 0) };
}

const newNode = (text, label, depth) => ({
  text,
  label,
  depth,
  children: [],
  draft: null,
  isKept: false,
  score: -Infinity,
  row: 0,
});

function markKept(node, draft) {
  node.isKept = true;
  node.score = Math.max(node.score, draft.score);
  if (node.text === draft.text) node.draft = draft;
  for (const child of node.children) if (draft.text.startsWith(child.text)) markKept(child, draft);
}

/** Give the node and all below it their rows, from `row` on; returns the first row that is left. */
function placed(node, row) {
  if (node.children.length === 0) {
    node.row = row;
    return row + 1;
  }
  let next = row;
  for (const child of node.children) next = placed(child, next);
  node.row = (node.children[0].row + node.children.at(-1).row) / 2;
  return next;
}

/**
 * How many rows the model ran to get to each depth of a tree from the one before.
 *
 * @param {number[]} depths as in the tree.
 * @param {number[]} rowsByDepth as in a snapshot, or in the answer's usage: rows that fed the drafts' first tokens, their second ones...
 * @returns {(number | null)[]} null for the prompt and the first tokens, which need no row of their own.
 */
export function rowsTo(depths, rowsByDepth) {
  return depths.map((depth, index) => {
    if (index < 2) return null;
    return rowsByDepth.slice(depths[index - 1] - 1, depth - 1).reduce((sum, rows) => sum + rows, 0);
  });
}
