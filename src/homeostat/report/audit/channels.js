"use strict";
// One norm's channels: what is known of each, charts, and a table of them.

const QUANTITIES = {
  moving_mean: "Moving mean", observed_mean: "Observed mean", shift: "Mean shift",
  moving_variance: "Moving variance", observed_variance: "Observed variance", drift: "Log variance ratio",
  ratio: "|Mean| / std", gamma: "Gamma", beta: "Beta",
};
const CHARTS = [
  { title: "Mean", of: ["moving_mean", "observed_mean"] },
  { title: "Variance", of: ["moving_variance", "observed_variance"], logarithmic: true },
  { title: "Observed minus moving mean, in moving standard deviations", of: ["shift"] },
  { title: "Logarithm of observed over moving variance", of: ["drift"] },
  { title: "Gamma", of: ["gamma"] },
  { title: "Beta", of: ["beta"] },
];
const PAGE = 100;
const MARGIN = { left: 58, right: 10, top: 8, bottom: 8 };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Every quantity of a norm that the page has the numbers for, an array over its channels each.
function quantitiesOf(norm) {
  const found = {};
  for (const name of Object.keys(QUANTITIES)) if (norm.arrays[name]) found[name] = decode(norm.arrays[name]);
  const { moving_mean: mean, moving_variance: variance, observed_mean: seen, observed_variance: spread } = found;
  const from = (of) => Float64Array.from(mean, (_, channel) => of(channel));
  if (mean && variance) found.ratio = from((c) => Math.abs(mean[c]) / Math.sqrt(variance[c]));
  if (mean && variance && seen) {
    const moving = (c) => Math.max(variance[c], 0) + norm.epsilon;
    found.shift = from((c) => (seen[c] - mean[c]) / Math.sqrt(moving(c)));
    found.drift = from((c) => Math.log((spread[c] + norm.epsilon) / moving(c)));
  }
  return found;
}

class Channels {
  constructor(norm) {
    this.values = quantitiesOf(norm);
    this.names = Object.keys(QUANTITIES).filter((name) => this.values[name]);
    this.count = this.names.length ? this.values[this.names[0]].length : 0;
    this.marks = new Map();
    for (const mark of norm.marks) {
      for (const channel of mark.channels) {
        this.marks.set(channel, [...(this.marks.get(channel) ?? []), mark.rule]);
      }
    }
    this.sort = { by: "channel", down: false };
    this.page = 0;
    this.order();
  }

  // The order of the channels from left to right; what is no number comes last.
  order() {
    const { by, down } = this.sort;
    this.shown = Uint32Array.from({ length: this.count }, (_, channel) => channel);
    const values = this.values[by];
    if (values) {
      this.shown.sort((a, b) => {
        if (Number.isNaN(values[a]) || Number.isNaN(values[b])) return Number.isNaN(values[a]) - Number.isNaN(values[b]);
        return (down ? values[b] - values[a] : values[a] - values[b]) || a - b;
      });
    } else if (down) this.shown.reverse();
  }

  view() {
    this.charts = CHARTS.map((chart) => ({ ...chart, of: chart.of.filter((name) => this.values[name]) }))
      .filter((chart) => chart.of.length)
      .map((chart) => this.chart(chart));
    this.slider = make("input", { type: "range", min: 0, max: this.count - 1, value: 0, id: "channel",
      oninput: () => this.point(Number(this.slider.value)) });
    this.numbers = make("dl", { class: "numbers" });
    this.by = make("select", { id: "sort-by", onchange: () => this.resort(this.by.value, this.down.checked) },
      make("option", { value: "channel" }, "Channel"),
      ...this.names.map((name) => make("option", { value: name }, QUANTITIES[name])));
    this.down = make("input", { type: "checkbox", onchange: () => this.resort(this.by.value, this.down.checked) });
    const marked = make("button", { type: "button", onclick: () => this.next() }, `Next of ${this.marks.size.toLocaleString("en")} marked`);
    this.table = make("div");
    this.details = make("details", { ontoggle: () => this.tabulate() }, make("summary", {}, "Table of the channels"), this.table);
    return [
      make("div", { class: "filters" },
        make("label", {}, "Channels from left to right by ", this.by),
        make("label", { class: "check" }, this.down, " largest first"),
        ...(this.marks.size ? [marked] : [])),
      make("div", { class: "charts" }, ...this.charts.map((chart) => chart.figure)),
      make("div", { class: "cursor" },
        make("label", { for: "channel" }, "Channel under the line; arrow keys move it"), this.slider, this.numbers),
      this.details,
    ];
  }

  chart({ title, of, logarithmic }) {
    const canvas = make("canvas", { role: "img" });
    const line = make("div", { class: "line" });
    const words = of.map((name) => this.words(name));
    canvas.setAttribute("aria-label", `${title} of ${this.count} channels. ${words.join(" ")}`);
    const keys = of.map((name, index) => make("span", { class: `key series${index}` }, QUANTITIES[name]));
    const figure = make("figure", {},
      make("figcaption", {}, title, ...(of.length > 1 ? [" ", ...keys] : [])),
      make("div", { class: "plot" }, canvas, line),
      ...words.map((text) => make("p", { class: "quiet" }, text)));
    canvas.addEventListener("pointermove", (event) => this.hover(canvas, event));
    canvas.addEventListener("pointerdown", (event) => this.hover(canvas, event));
    return { figure, canvas, line, of, scale: makeScale(of.map((name) => this.values[name]), logarithmic) };
  }

  words(name) {
    const { low, middle, high, odd } = summarize(this.values[name]);
    const range = low === undefined ? "" : low === high ? `${show(low, 4)} everywhere` : `${show(low, 4)} to ${show(high, 4)}, median ${show(middle, 4)}`;
    const not = odd ? `${range ? "; " : ""}${odd.toLocaleString("en")} NaN or ∞` : "";
    return `${QUANTITIES[name]}: ${range}${not}.`;
  }

  hover(canvas, event) {
    const width = canvas.clientWidth - MARGIN.left - MARGIN.right;
    const at = (event.offsetX - MARGIN.left) / width * this.count;
    this.point(Math.min(this.count - 1, Math.max(0, Math.floor(at))));
  }

  // Show the numbers of the channel at a position.
  point(position) {
    const channel = this.shown[position];
    const marks = this.marks.get(channel);
    const rows = [["Channel", channel.toLocaleString("en")],
      ...this.names.map((name) => [QUANTITIES[name], show(this.values[name][channel])]),
      ["Findings", marks ? marks.join(", ") : "none"]];
    this.numbers.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    this.slider.value = position;
    this.slider.setAttribute("aria-valuetext", rows.map((row) => row.join(" ")).join(", "));
    for (const { canvas, line } of this.charts) {
      const width = canvas.clientWidth - MARGIN.left - MARGIN.right;
      line.style.transform = `translateX(${MARGIN.left + (position + 0.5) / this.count * width}px)`;
    }
  }

  next() {
    const start = Number(this.slider.value);
    for (let step = 1; step <= this.count; step++) {
      const position = (start + step) % this.count;
      if (this.marks.has(this.shown[position])) {
        this.point(position);
        this.slider.focus();
        return;
      }
    }
  }

  resort(by, down) {
    this.sort = { by, down };
    this.by.value = by;
    this.down.checked = down;
    this.page = 0;
    this.order();
    this.draw();
    this.tabulate();
  }

  draw() {
    const style = getComputedStyle(document.documentElement);
    const paint = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const chart of this.charts) this.drawOne(chart, paint);
    this.point(Number(this.slider.value));
  }

  drawOne({ canvas, of, scale }, paint) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const y = (at) => MARGIN.top + (1 - Math.min(1, Math.max(0, at))) * inner.height;
    const labels = [];
    for (const { value, at } of scale.ticks) {
      pen.fillStyle = paint("line");
      pen.fillRect(MARGIN.left, Math.round(y(at)), inner.width, 1);
      // Labels that would touch are left out.
      if (labels.some((label) => Math.abs(label - y(at)) < 12)) continue;
      labels.push(y(at));
      pen.fillStyle = paint("quiet");
      pen.fillText(show(value, 3), MARGIN.left - 6, y(at));
    }
    const apart = inner.width / this.count;
    const size = apart > 12 ? 5 : apart > 4 ? 4 : apart > 1 ? 3 : 2;
    const x = (position) => MARGIN.left + (position + 0.5) * apart;
    if (this.marks.size) {
      pen.fillStyle = paint("mark");
      this.shown.forEach((channel, position) => {
        if (this.marks.has(channel)) pen.fillRect(x(position) - Math.max(1, apart / 2), MARGIN.top, Math.max(2, apart), inner.height);
      });
    }
    // What is observed lies under what is stored, so that both are seen where they agree.
    [...of].reverse().forEach((name) => {
      const index = of.indexOf(name);
      const side = index ? size + 1 : size;
      pen.globalAlpha = index ? 0.6 : 1;
      const values = this.values[name];
      pen.fillStyle = paint(index ? "observed" : "with");
      const odd = [];
      for (let position = 0; position < this.count; position++) {
        const value = values[this.shown[position]];
        if (Number.isFinite(value)) pen.fillRect(x(position) - side / 2, y(scale.place(value)) - side / 2, side, side);
        else odd.push([position, value]);
      }
      pen.globalAlpha = 1;
      pen.fillStyle = paint("error");
      pen.textAlign = "center";
      // As many crosses as there is room for.
      const every = Math.ceil(odd.length * 8 / inner.width) || 1;
      odd.filter((_, index) => index % every === 0).forEach(([position, value]) => pen.fillText("×", x(position), y(value < 0 ? 0 : 1) + (value < 0 ? -5 : 5)));
      pen.textAlign = "right";
    });
  }

  tabulate() {
    if (!this.details.open) return;
    const columns = ["channel", ...this.names];
    const start = this.page * PAGE;
    const shown = [...this.shown.slice(start, start + PAGE)];
    const header = (name) => {
      const sorted = this.sort.by === name;
      return make("th", { scope: "col", class: "number", "aria-sort": sorted ? (this.sort.down ? "descending" : "ascending") : "none" },
        make("button", { type: "button", "data-by": name, onclick: () => {
          this.resort(name, sorted && !this.sort.down);
          this.table.querySelector(`button[data-by="${name}"]`).focus();
        } }, QUANTITIES[name] ?? "Channel"));
    };
    const row = (channel) => make("tr", this.marks.has(channel) ? { class: "marked" } : {},
      make("th", { scope: "row", class: "number" }, String(channel)),
      ...this.names.map((name) => make("td", { class: "number" }, show(this.values[name][channel]))),
      make("td", {}, (this.marks.get(channel) ?? []).join(", ")));
    const turn = (words, by) => make("button", { type: "button", disabled: by < 0 ? start === 0 : start + PAGE >= this.count,
      "data-turn": by, onclick: () => {
        this.page += by;
        this.tabulate();
        const same = this.table.querySelector(`button[data-turn="${by}"]`);
        (same.disabled ? this.table.querySelector(`button[data-turn="${-by}"]`) : same).focus();
      } }, words);
    const range = `Channels ${(start + 1).toLocaleString("en")} to ${(start + shown.length).toLocaleString("en")} of ${this.count.toLocaleString("en")}`;
    this.table.replaceChildren(
      make("p", { class: "turn" }, turn("Previous", -1), make("span", { role: "status" }, range), turn("Next", 1)),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of channels" },
        make("table", { class: "channels" },
          make("thead", {}, make("tr", {}, ...columns.map(header), make("th", { scope: "col", class: "plain" }, "Findings"))),
          make("tbody", {}, ...shown.map(row)))));
  }
}
