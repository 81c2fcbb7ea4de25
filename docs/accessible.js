// What theme and Sphinx leave out for screen readers: a name for the arrows of the sidebar, and that the lines of a
// signature are no list of terms and definitions.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("nav summary").forEach((arrow) => arrow.setAttribute("aria-label", "pages below"));
  document.querySelectorAll(".sig > dl, .sig > dl > dd").forEach((line) => line.setAttribute("role", "none"));
});
