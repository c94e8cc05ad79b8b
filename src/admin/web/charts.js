// Charts of the last minutes, one line or two each, drawn as SVG. They are pictures for the eye; the figures beside them
// say the same to those who cannot see them.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 100;

function make(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The next number that is easy to read. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((times) => times * step).find((round) => round >= value * 0.999);
}

/** A line through what is known; where nothing is, it is broken. */
function path(values, length, top) {
  let pen = "M";
  let text = "";
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      pen = "M";
      return;
    }
    const x = WIDTH - ((values.length - 1 - index) / Math.max(length - 1, 1)) * WIDTH;
    text += `${pen}${x.toFixed(1)} ${(HEIGHT - (Math.min(value, top) / top) * HEIGHT).toFixed(1)}`;
    pen = "L";
  });
  return text;
}

/** The same as areas below the line. */
function area(line) {
  const parts = line.split("M").filter((part) => part.includes("L"));
  const closed = parts.map((part) => {
    const points = part.split("L");
    const [first, last] = [points[0], points[points.length - 1]].map((point) => point.split(" ")[0]);
    return `M${first} ${HEIGHT}L${points.join("L")}L${last} ${HEIGHT}Z`;
  });
  return closed.join("");
}

export class Chart {
  #lines;
  #form;
  #top;
  #svg;
  #paths;
  #area;
  #shown = null;

  /** `lines` are one or two names; `form` makes a text of a value. */
  constructor(title, lines, form) {
    this.#lines = lines;
    this.#form = form;
    const caption = document.createElement("figcaption");
    const name = document.createElement("b");
    name.textContent = title;
    caption.append(name);
    if (lines.length > 1) {
      lines.forEach((line, index) => {
        const legend = document.createElement("span");
        legend.className = ["one", "two"][index];
        legend.textContent = line;
        caption.append(legend);
      });
    }
    this.#top = document.createElement("div");
    this.#top.className = "top";
    this.#top.setAttribute("aria-hidden", "true");
    this.#area = make("path", { class: "area", d: "" });
    this.#paths = lines.map((_, index) => make("path", { class: ["one", "two"][index], d: "" }));
    const grid = [0, 50, 100].map((y) => make("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.#svg = make(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      ...grid,
      this.#area,
      ...[...this.#paths].reverse(),
    );
    const axis = document.createElement("div");
    axis.className = "axis";
    axis.setAttribute("aria-hidden", "true");
    for (const text of ["5 minutes ago", "now"]) {
      const end = document.createElement("span");
      end.textContent = text;
      axis.append(end);
    }
    this.element = document.createElement("figure");
    this.element.append(caption, this.#top, this.#svg, axis);
    this.title = title;
  }

  /** Shows these lists of values, each up to `length` long and the latest last. */
  show(lists, length) {
    const known = lists.flat().filter((value) => typeof value === "number");
    const top = ceiling(Math.max(0, ...known));
    const lines = lists.map((values) => path(values, length, top));
    const shown = lines.join("|");
    if (shown === this.#shown) return;
    this.#shown = shown;
    lines.forEach((line, index) => this.#paths[index].setAttribute("d", line));
    this.#area.setAttribute("d", area(lines[0]));
    this.#top.textContent = this.#form(top);
    const now = lists.map((values, index) => `${this.#lines[index]} ${this.#form(values[values.length - 1])}`);
    this.#svg.setAttribute("aria-label", `${this.title}: now ${now.join(", ")}; at most ${this.#form(Math.max(0, ...known))}`);
  }
}
