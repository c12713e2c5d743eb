// The browser's storages, which throw where they are switched off: then nothing is remembered.

/** @returns {string} what is stored under the name; empty if nothing is. */
export function recall(storageName, name) {
  try {
    return window[storageName].getItem(name) ?? "";
  } catch {
    return "";
  }
}

/** Store a value; an empty one removes the name. */
export function remember(storageName, name, value) {
  try {
    if (value) window[storageName].setItem(name, value);
    else window[storageName].removeItem(name);
  } catch {
    // Not remembered.
  }
}
