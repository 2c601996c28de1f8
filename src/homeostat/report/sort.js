"use strict";
// Sort a table by the column whose header's button was pressed; cells hold their value in data-sort.
function sortBy(header) {
  const table = header.closest("table");
  const headers = [...header.parentElement.children];
  const column = headers.indexOf(header);
  const now = header.getAttribute("aria-sort");
  const down = now === "none" ? header.dataset.first === "descending" : now === "ascending";
  for (const other of headers) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.sort;
  const number = table.tBodies[0].rows[0]?.children[column].classList.contains("number");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    // Infinity minus infinity is no number.
    const order = number ? Number(x) - Number(y) || 0 : x.localeCompare(y);
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}
for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
