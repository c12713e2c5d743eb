// Slider for the probability below which drafts are hidden. The browser remembers it.

import { recall, remember } from "./storage.js";

const NAME = "superdraft.silence";

const slider = document.getElementById("silence");

/** The probability that a draft must have to be shown; 0 shows all. */
export const minProbability = () => slider.valueAsNumber / 100;

export function onSilence(call) {
  slider.addEventListener("input", () => {
    show();
    remember("localStorage", NAME, slider.value.replace(/^0$/, ""));
    call();
  });
}

function show() {
  const isOff = slider.value === "0";
  document.getElementById("silence-value").textContent = isOff ? "show all" : `${slider.value}\u2009%`;
  slider.setAttribute("aria-valuetext", isOff ? "show all" : `${slider.value} percent`);
}

slider.value = recall("localStorage", NAME) || "0";
show();
