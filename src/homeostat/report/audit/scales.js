"use strict";
// Numbers, and where they lie on a chart's axis.

function decode(packed) {
  if (!packed) return null;
  if ("all" in packed) return new Float64Array(packed.count).fill(packed.all);
  const bytes = Uint8Array.from(atob(packed.float32 ?? packed.float64), (char) => char.charCodeAt(0));
  return "float32" in packed ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
}

function show(value, digits = 6) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(digits))).replace("-", "−").replace("e−", "e−");
}

// The least, the median and the largest of the finite values, and how many are not.
function summarize(values) {
  const finite = Float64Array.from(values).filter(Number.isFinite).sort();
  return {
    low: finite[0], middle: finite[finite.length >> 1], high: finite[finite.length - 1],
    odd: values.length - finite.length, finite,
  };
}

// What takes a value to 0 (bottom) ... 1 (top), and the ticks; steep where values are many powers apart.
function makeScale(columns, logarithmic) {
  const all = columns.flatMap((values) => [...summarize(values).finite]).sort((a, b) => a - b);
  let bend = (value) => value, unbend = null, least = 0;
  if (logarithmic && all.some((value) => value > 0)) {
    const positive = all.filter((value) => value > 0);
    if (positive[positive.length - 1] > 20 * positive[0]) {
      [bend, unbend] = [(value) => value > 0 ? Math.log10(value) : Math.log10(positive[0]) - 0.3, (at) => 10 ** at];
    }
  } else if (all.length) {
    const sizes = all.map(Math.abs).sort((a, b) => a - b);
    const usual = sizes[sizes.length >> 1] || sizes.find((size) => size > 0) || 1;
    if (sizes[sizes.length - 1] > 40 * usual) {
      least = usual;
      [bend, unbend] = [(value) => Math.asinh(value / usual), (at) => Math.sinh(at) * usual];
    }
  }
  const bent = all.map(bend);
  let low = all.length ? bent[0] : 0, high = all.length ? bent[bent.length - 1] : 1;
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - room, high + room];
  const place = (value) => (bend(value) - low) / (high - low);
  const ticks = unbend ? powerTicks(unbend(low), unbend(high), least) : evenTicks(low, high);
  return { place, ticks: ticks.map((value) => ({ value, at: place(value) })) };
}

function evenTicks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push(Number((n * step).toPrecision(12)));
  return ticks;
}

// Powers of ten between two values, of both signs and 0 where the lower one is negative.
function powerTicks(low, high, least) {
  const largest = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high))));
  const smallest = Math.ceil(Math.log10(low > 0 ? low : least || high / 1e6));
  const step = Math.max(1, Math.ceil((largest - smallest) / 4));
  const ticks = low > 0 ? [] : [0];
  for (let n = largest; n >= smallest; n -= step) ticks.push(10 ** n, -(10 ** n));
  return ticks.filter((value) => value >= low && value <= high);
}
