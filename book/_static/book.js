// Two things that the widget manager (ipywidgets 8) leaves undone in a static page.
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
});
