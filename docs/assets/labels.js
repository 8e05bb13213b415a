// The theme adds an unnamed <nav> to each code block; screen readers need names that differ.
new MutationObserver(() => {
  document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach((nav) => {
    const number = document.querySelectorAll("nav.md-code__nav[aria-label]").length + 1;
    nav.setAttribute("aria-label", `Code block ${number}`);
  });
}).observe(document.documentElement, { childList: true, subtree: true });
