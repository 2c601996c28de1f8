"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function themed(figure) {
    const ink = color("ink"), line = color("line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: false, fixedrange: true };
    const data = figure.data.map((trace) => {
      const paint = color(trace.role);
      const copy = { showlegend: true, ...trace, line: { ...trace.line, color: paint } };
      if (trace.marker || trace.type === "bar") copy.marker = { ...trace.marker, color: paint };
      if (trace.fill) copy.fillcolor = `${paint}38`;
      delete copy.role;
      if (trace.type === "bar") delete copy.line;
      return copy;
    });
    const layout = {
      showlegend: false,
      ...figure.layout,
      autosize: true,
      dragmode: false,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: color("panel"), font: { color: ink } },
      xaxis: { ...axis, ...figure.layout.xaxis },
      yaxis: { ...axis, ...figure.layout.yaxis },
    };
    return [data, layout];
  }

  function draw(place) {
    const [data, layout] = themed(figures[place.dataset.figure]);
    return Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
  }

  // Charts far down the page are drawn when they come near, so that a phone shows the first soon.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });

  function chart(key, label) {
    const place = document.createElement("div");
    place.className = "chart";
    place.dataset.figure = key;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", label);
    place.style.minHeight = `${figures[key].layout.height}px`;
    return place;
  }

  function showInside(select) {
    const holder = select.closest("section").querySelector(".inside");
    for (const old of holder.querySelectorAll(".js-plotly-plot")) Plotly.purge(old);
    holder.replaceChildren();
    const keys = JSON.parse(holder.dataset.choices)[select.value];
    const what = { gradients: "Gradient norms", inputs: "Activation inputs" };
    for (const kind of Object.keys(what)) {
      for (const key of keys.filter((k) => k.includes(`-${kind}-`))) {
        const words = `${what[kind]}, ${key.endsWith("without") ? "without" : "with"} batch norm`;
        const tile = document.createElement("figure");
        const caption = document.createElement("figcaption");
        caption.textContent = words;
        const place = chart(key, `${words}: ${select.selectedOptions[0].textContent}`);
        tile.append(caption, place);
        holder.append(tile);
        near.observe(place);
      }
    }
  }

  for (const place of document.querySelectorAll(".chart")) {
    place.style.minHeight = `${figures[place.dataset.figure].layout.height}px`;
    near.observe(place);
  }
  for (const select of document.querySelectorAll(".choice")) {
    select.addEventListener("change", () => showInside(select));
    showInside(select);
  }
  dark.addEventListener("change", () => document.querySelectorAll(".js-plotly-plot").forEach(draw));
  // Everything is drawn before printing.
  window.addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach(draw));
})();
