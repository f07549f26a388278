"use strict";
const lines = [...document.querySelectorAll(".board .line")];

function sortBy(table, column, button) {
  const head = button.closest("th");
  const descending = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (line) => {
    const cell = line.cells[column];
    return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  for (const body of table.tBodies) {
    const held = [...body.querySelectorAll(".line")];
    held.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const numbers = [typeof x === "number", typeof y === "number"];
      if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1; // rows without a number stay below
      const order = numbers[0] ? x - y : x.localeCompare(y);
      return descending ? -order : order;
    });
    body.append(...held);
  }
}

for (const table of document.querySelectorAll(".board")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => sortBy(table, column, button));
  });
}

const form = document.getElementById("filters");
const chosen = (name) => new Set([...form.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value));

function filter() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [blocks, codes] = [chosen("block"), chosen("code")];
  let shown = 0;
  for (const line of lines) {
    const consumed = line.dataset.codes.split(" ").filter(Boolean);
    const keep = blocks.has(line.parentNode.dataset.block) && consumed.every((code) => codes.has(code))
      && words.every((word) => line.dataset.search.includes(word));
    line.hidden = !keep;
    shown += keep;
  }
  for (const body of document.querySelectorAll(".board tbody")) {
    body.querySelector(".block").hidden = !body.querySelector(".line:not([hidden])");
  }
  document.getElementById("count").textContent = `${shown} of ${lines.length} rows`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();

function reveal() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.parentNode.closest("details").open = true;
    target.open = true;
    target.querySelector("summary").focus();
    target.scrollIntoView();
  }
}
addEventListener("hashchange", reveal);
for (const link of document.querySelectorAll(".line a")) link.addEventListener("click", () => setTimeout(reveal));
reveal();
