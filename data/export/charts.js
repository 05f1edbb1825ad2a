// Draws each chart when it comes into sight, in the light or dark of the screen; on paper, light.
const dark = matchMedia("(prefers-color-scheme: dark)");

function drawn(place, mode) {
  const figure = JSON.parse(place.nextElementSibling.textContent);
  const look = KNOWN.looks[mode];
  const layout = { ...figure.layout, template: look.template, separators: KNOWN.separators, autosize: true };
  layout.font = { ...layout.font, color: look.font.color };
  for (const name of Object.keys({ ...layout, xaxis: 0, yaxis: 0 }).filter((key) => /^[xy]axis\d*$/.test(key))) {
    const axis = look[name[0] + "axis"];
    layout[name] = { ...layout[name], gridcolor: axis.gridcolor, linecolor: axis.linecolor };
  }
  place.dataset.mode = mode;
  return Plotly.react(place, figure.data, layout, { displaylogo: false, responsive: true });
}

const places = [...document.querySelectorAll(".chart")];
const now = () => (dark.matches ? "dark" : "light");
const watch = new IntersectionObserver(
  (seen) => seen.filter((one) => one.isIntersecting && !one.target.dataset.mode).forEach((one) => drawn(one.target, now())),
  { rootMargin: "600px" },
);
places.forEach((place) => watch.observe(place));
dark.addEventListener("change", () => places.filter((place) => place.dataset.mode).forEach((place) => drawn(place, now())));

addEventListener("beforeprint", () => {
  places.filter((place) => place.dataset.mode !== "light").forEach((place) => drawn(place, "light"));
  document.querySelectorAll("details").forEach((one) => (one.open = true));
});
addEventListener("afterprint", () => places.filter((place) => place.dataset.mode !== now()).forEach((place) => drawn(place, now())));
