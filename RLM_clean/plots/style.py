"""One style for all figures."""

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#555555'
