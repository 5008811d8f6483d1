import matplotlib.pyplot
import numpy
import pandas
import sklearn
from sklearn.linear_model import LinearRegression

frame = pandas.DataFrame({"x": numpy.arange(50.0), "y": numpy.arange(50.0) * 2 + 1})
fitted = LinearRegression().fit(frame[["x"]], frame["y"])
figure, axes = matplotlib.pyplot.subplots()
axes.plot(frame["x"], fitted.predict(frame[["x"]]))
figure.savefig("/output/plot.png")
print(round(float(fitted.coef_[0]), 6), sklearn.__name__)
