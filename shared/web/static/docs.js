// Renders the API description with the vendored Swagger UI, without requests to other servers.
globalThis.SwaggerUIBundle({
  url: `${document.body.dataset.root ?? ""}/openapi.json`,
  dom_id: "#swagger",
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: { activated: false },
});
