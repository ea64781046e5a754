// What every part of the page uses: elements, icons, and the storage of the browser.
//
// The page's script is these files in this order: dom.js, markdown.js, api.js, messages.js, page.js. The server sends them
// as one, so that the page needs three requests and no build.
"use strict";

// An element with properties, attributes (`data-`, `aria-`, `role`) and children.
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const $ = (id) => document.getElementById(id);

const ICONS = {
  plus: "M12 5v14M5 12h14",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.500z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M4.9 4.900l1.4 1.400M17.7 17.700l1.4 1.400M2 12h2M20 12h2M4.9 19.100l1.4-1.400M17.7 6.300l1.4-1.4",
  sliders: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4",
  close: "M6 6l12 12M18 6L6 18",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.500l4.5 4.500L19 7.5",
  again: "M20 5v5h-5M4 19v-5h5M19.5 10a8 8 0 0 0-14-2.500M4.5 14a8 8 0 0 0 14 2.5",
  pencil: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  chevron: "M9 6l6 6-6 6",
  wrench: "M14.5 6.500a4 4 0 0 0-5 5L4 17l3 3 5.5-5.500a4 4 0 0 0 5-5L15 12l-3-3z",
  thought: "M9 18h6M10 21h4M12 3a6 6 0 0 0-3.5 10.900c.6.5 1 1.2 1 2.100h5c0-.9.4-1.6 1-2.100A6 6 0 0 0 12 3z",
  warning: "M12 4L2.5 20h19zM12 10v4M12 17v.5",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function iconButton(name, label, onclick) {
  return el("button", { type: "button", className: "quiet round small", title: label, "aria-label": label, onclick }, icon(name));
}

function setIcon(button, name) {
  button.querySelector("svg")?.remove();
  button.prepend(icon(name));
}

// What the storage of the browser holds under a name; nothing if it may not be used.
function stored(storage, name, otherwise) {
  try {
    return JSON.parse(window[storage].getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function store(storage, name, value) {
  try {
    window[storage].setItem(name, JSON.stringify(value));
  } catch {
    // Full or forbidden: the page works on without.
  }
}
