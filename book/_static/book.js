// Two things that the widget manager (ipywidgets 8) leaves undone in a static page, and one that
// the theme does.
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
