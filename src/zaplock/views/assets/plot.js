// The end of the bundle that has vegaEmbed. Draw the plot that stands in the page. `ast`: Vega interprets expressions, none is compiled.
vegaEmbed("#plot", JSON.parse(document.getElementById("spec").textContent),
          { ast: true, actions: false, renderer: "svg" })
  .then(() => { document.body.dataset.ready = "1"; })
  .catch(error => { document.getElementById("plot").textContent = String(error); });
