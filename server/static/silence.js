// Slider for the probability below which the server withholds drafts. It starts at the server's own default, and the
// browser remembers another choice.

import { recall, remember } from "./storage.js";

const NAME = "superdraft.silence";

const slider = document.getElementById("silence");

let chosen = recall("localStorage", NAME); // in percent; empty: the server's default
let usual = null; // the server's default in percent, once it is known

/** The probability that a draft must have to be shown; 0 shows all. */
export const minProbability = () => slider.valueAsNumber / 100;

/** The request field that the user has set, if any. */
export const fields = () => (chosen === "" ? {} : { min_probability_shown: Number(chosen) / 100 });

/** Apply the server's default. */
export function offer(minProbabilityShown) {
  usual = String(Math.round(minProbabilityShown * 100));
  show();
}

/** Set what to do when the user has chosen another value. */
export function onSilence(call) {
  slider.addEventListener("input", () => {
    chosen = slider.value === usual ? "" : slider.value;
    remember("localStorage", NAME, chosen);
    show();
  });
  slider.addEventListener("change", call);
}

function show() {
  slider.max = Math.max(50, Number(chosen), Number(usual));
  slider.value = chosen || usual || "0";
  const name = slider.value === "0" ? "show all" : `${slider.value}\u2009%`;
  const isUsual = chosen === "" && usual !== null;
  document.getElementById("silence-value").textContent = isUsual ? `${name} (default)` : name;
  slider.setAttribute("aria-valuetext", slider.value === "0" ? name : `${slider.value} percent`);
}

show();
