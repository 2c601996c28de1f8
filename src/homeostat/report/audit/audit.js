"use strict";
// The page: light and dark, filters, moving by keys, and which norm is open.
(() => {
  const norms = JSON.parse(document.getElementById("norms-data").textContent);
  const root = document.documentElement;
  const rows = [...document.querySelectorAll(".norms tbody tr")];
  const cells = [...document.querySelectorAll(".strip a")];
  const findings = [...document.querySelectorAll(".findings > li")];
  const place = document.getElementById("norm");
  let open = null;

  // One palette for the system's dark mode and for the switch: the switch decides whether it applies.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const palettes = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
    .filter((rule) => rule instanceof CSSMediaRule && rule.media.mediaText.includes("prefers-color-scheme"));
  const theme = document.getElementById("theme");
  let chosen = null;
  function paint(dark) {
    for (const rule of palettes) rule.media.mediaText = dark ? "all" : "not all";
    root.style.colorScheme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
    open?.draw();
  }
  theme.hidden = false;
  theme.addEventListener("click", () => paint(chosen = theme.getAttribute("aria-pressed") !== "true"));
  system.addEventListener("change", () => paint(chosen ?? system.matches));
  window.addEventListener("beforeprint", () => paint(false));
  window.addEventListener("afterprint", () => paint(chosen ?? system.matches));

  const words = document.getElementById("words");
  const severity = document.getElementById("severity");
  const rule = document.getElementById("rule");
  const nameOf = (index) => index === undefined ? "" : norms[index].name.toLowerCase();
  const messages = new Map(findings.map((item) => [item, item.querySelector(".message").textContent.toLowerCase()]));

  function filter() {
    const text = words.value.trim().toLowerCase();
    const [want, by] = [severity.value, rule.value];
    const found = new Set();
    for (const item of findings) {
      const { norm } = item.dataset;
      const fits = (!want || item.dataset.severity === want) && (!by || item.dataset.rule === by)
        && (nameOf(norm).includes(text) || messages.get(item).includes(text));
      item.hidden = !fits;
      if (fits) found.add(norm);
    }
    for (const section of document.querySelectorAll(".rule")) {
      section.hidden = !section.querySelector(".findings > li:not([hidden])");
    }
    let count = 0;
    rows.forEach((row) => {
      const { norm, worst } = row.dataset;
      const clean = want === "clean" && worst === "clean" && !by && nameOf(norm).includes(text);
      const fits = clean || found.has(norm) || (!want && !by && nameOf(norm).includes(text));
      row.hidden = !fits;
      cells[norm].classList.toggle("out", !fits);
      count += fits;
    });
    const left = findings.filter((item) => !item.hidden).length;
    document.getElementById("shown").textContent =
      `${count} of ${rows.length} norms and ${left} of ${findings.length} findings shown`;
    rove(links());
    rove(cells);
  }

  // Of many links the Tab key comes to one, and arrows lead on from it.
  const links = () => [...document.querySelectorAll(".norms tbody tr:not([hidden]) a")];
  function rove(items) {
    const kept = items.find((item) => item.tabIndex === 0 && item.dataset.roved) ?? items[0];
    for (const item of items) item.tabIndex = item === kept ? 0 : -1;
    if (kept) kept.dataset.roved = "yes";
  }
  function arrows(holder, items, back, on) {
    holder?.addEventListener("keydown", (event) => {
      const all = items();
      const at = all.indexOf(event.target);
      const to = { [back]: at - 1, [on]: at + 1, Home: 0, End: all.length - 1 }[event.key];
      if (at < 0 || to === undefined || !all[to]) return;
      event.preventDefault();
      for (const item of all) {
        item.tabIndex = -1;
        delete item.dataset.roved;
      }
      all[to].tabIndex = 0;
      all[to].dataset.roved = "yes";
      all[to].focus();
    });
  }

  function show(index) {
    const norm = norms[index];
    const severities = findings.filter((item) => item.dataset.norm === String(index));
    open = new Channels(norm);
    const step = (words, to) => norms[to] ? [make("a", { href: `#norm-${to}` }, words)] : [];
    place.replaceChildren(
      make("p", { class: "turn" }, ...step("← Previous norm", index - 1),
        make("a", { href: `#row-${index}` }, "Back to the list"), ...step("Next norm →", index + 1)),
      make("h2", { id: "norm-name", tabindex: -1 }, make("bdi", {}, norm.name)),
      severities.length ? make("ul", { class: "found" }, ...severities.map((item) => make("li", { class: item.dataset.severity },
        make("a", { href: `#${item.id}` }, `${item.dataset.rule}, ${item.dataset.severity}`), ` ${item.querySelector(".message").textContent}`)))
        : make("p", { class: "claim" }, "Nothing was found here."),
      make("dl", { class: "facts" }, ...norm.facts.map(([name, value]) => make("div", {},
        make("dt", {}, name), make("dd", value.startsWith("not told") ? { class: "quiet" } : {}, value)))),
      ...(open.count ? open.view() : [make("p", {}, "Neither parameters nor statistics of its channels are known.")]));
    place.hidden = false;
    for (const element of [...rows, ...cells]) {
      if (element.dataset.norm === String(index)) element.setAttribute("aria-current", "true");
      else element.removeAttribute("aria-current");
    }
    if (open.count) open.draw(); else open = null;
    place.querySelector("h2").focus({ preventScroll: true });
    place.scrollIntoView();
  }

  // Every place has an address, so that links, the Back button and bookmarks lead to it.
  function follow() {
    const [, kind, index] = /^#(norm|row|finding)-(\d+)$/.exec(location.hash) ?? [];
    if (kind === "norm" && norms[index]) show(Number(index));
    const target = kind && kind !== "norm" && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.hidden) {
      document.getElementById("filters").reset();
      filter();
    }
    target.scrollIntoView({ block: "center" });
    (kind === "row" ? target.querySelector("a") : target).focus({ preventScroll: true });
  }

  if (rows.length) {
    words.addEventListener("input", filter);
    for (const select of [severity, rule]) select.addEventListener("change", filter);
    const filters = document.getElementById("filters");
    filters.addEventListener("submit", (event) => event.preventDefault());
    // The fields are emptied after this event.
    filters.addEventListener("reset", () => setTimeout(filter));
    arrows(document.querySelector(".strip"), () => cells, "ArrowLeft", "ArrowRight");
    arrows(document.querySelector(".norms"), links, "ArrowUp", "ArrowDown");
    filter();
  }
  window.addEventListener("hashchange", follow);
  // A link to where one is already leads there again.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  new ResizeObserver(() => open?.draw()).observe(place);
  paint(system.matches);
  follow();
})();
