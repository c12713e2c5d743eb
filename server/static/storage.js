// Access to the browser's storage, which throws an exception if the user has disabled it. Nothing is stored then.

/** @returns {string} the value stored under the name, or an empty string. */
export function recall(storageName, name) {
  try {
    return window[storageName].getItem(name) ?? "";
  } catch {
    return "";
  }
}

/** Store a value under a name; an empty value removes the name. */
export function remember(storageName, name, value) {
  try {
    if (value) window[storageName].setItem(name, value);
    else window[storageName].removeItem(name);
  } catch {
    // Storage is disabled.
  }
}
