// Two things that the widget manager (ipywidgets 8) leaves undone in a static page, one that
// the theme does, and tables that can be sorted.
// The load event comes after MathJax's deferred script and before the widgets are drawn.
window.addEventListener("load", () => {
  // It typesets labels with MathJax 2's call; the pages have MathJax 3.
  if (window.MathJax) {
    MathJax.Hub ??= { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
  }

  // It gives a slider a visible label, but the handle that takes the focus has no name.
  const name = () => {
    for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
      const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
      handle.setAttribute("aria-label", label?.textContent || "slider");
    }
  };
  for (const cell of document.querySelectorAll(".widget-subarea, .cell_output")) {
    new MutationObserver(name).observe(cell, { childList: true, subtree: true });
  }

  // Code that scrolls must take the focus, or the keyboard cannot scroll it. The theme looks once,
  // when code in a folded solution has no size yet.
  const reach = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
    }
  });
  document.querySelectorAll("pre").forEach((block) => reach.observe(block));
});

// The headers of a table of class "sortable" become buttons. A first click sorts upwards, a second
// one downwards; cells without a value stay at the end.
const sortRows = (table, column, downwards) => {
  const text = (row) => row.cells[column].textContent.trim();
  const compare = (one, other) => {
    const [a, b] = [text(one), text(other)];
    if (a === "–" || b === "–") return (a === "–") - (b === "–");
    const difference = a - b; // NaN for words
    const order = Number.isNaN(difference) ? (a > b) - (a < b) : difference;
    return downwards ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
};

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      if (table.tBodies[0].rows[0].cells[column].querySelector("img")) return;
      const button = document.createElement("button");
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const downwards = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", downwards ? "descending" : "ascending");
        sortRows(table, column, downwards);
      });
    });
  }
});
