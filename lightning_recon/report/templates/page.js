"use strict";
// Without this script the page is complete; with it tables sort and filter, text can be copied
// and pictures enlarge.

function value(cell) {
  const text = cell.textContent.trim().replace(/,/g, "");
  if (text === "\u2013" || text === "") return null;
  if (text === "\u221e") return Infinity;
  const found = /^-?\d+(\.\d+)?(e[+-]?\d+)?/.exec(text);
  return found ? Number(found[0]) : text.toLowerCase();
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [value(row.cells[column]), row]);
  keyed.sort(([a], [b]) => {
    const order = compare(a, b);
    return a === null || b === null ? order : direction === "ascending" ? order : -order;
  });
  body.append(...keyed.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const last = head.getAttribute("aria-sort");
      sort(table, column, last === "descending" ? "ascending" : "descending");
    });
  });
}

function makeFilterable(table, box) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 8) return;
  const heads = [...table.tHead.rows[0].cells];
  const output = document.createElement("output");
  const tests = [];
  function labelled(text, field) {
    const label = document.createElement("label");
    label.append(text, field);
    field.addEventListener("input", apply);
    box.append(label);
    return field;
  }
  function apply() {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !tests.every((test) => test(row));
      shown += !row.hidden;
    }
    output.textContent = `${shown} of ${rows.length} shown`;
  }
  const search = labelled("Search", document.createElement("input"));
  search.type = "search";
  tests.push((row) => row.textContent.toLowerCase().includes(search.value.toLowerCase()));
  heads.forEach((head, column) => {
    if (!("facet" in head.dataset)) return;
    const text = (row) => row.cells[column].textContent;
    const there = new Set(rows.map(text));
    const options = JSON.parse(head.dataset.facet).filter((option) => there.has(option));
    if (options.length < 2 || options.length > 60) return;
    const choice = labelled(head.textContent, document.createElement("select"));
    choice.add(new Option("all", ""));
    for (const option of options) choice.add(new Option(option));
    tests.push((row) => choice.selectedIndex === 0 || text(row) === choice.value);
  });
  box.append(output);
  box.hidden = false;
  apply();
}

for (const box of document.querySelectorAll(".filters")) {
  const table = document.getElementById(box.dataset.table);
  makeFilterable(table, box);
  makeSortable(table);
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  });
}

for (const button of document.querySelectorAll("[data-enlarge]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const isWide = button.closest(".card").classList.toggle("wide");
    button.setAttribute("aria-pressed", isWide);
  });
}
