// The page of the HTTP API: Swagger UI with the server's own description of its routes.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });
